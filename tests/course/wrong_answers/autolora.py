"""Answers to the exercises of 06."""

import torch


def _unrolled(graph):
    def answer(toy, w, beta, eta, sign=-1.0):
        w, beta = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (w, beta))
        (slope,) = torch.autograd.grad(toy.loss("train", w, beta), w, create_graph=graph)
        virtual = w + sign * eta * slope
        return torch.autograd.grad(toy.loss("held_out", virtual, beta), beta)[0]

    return answer


def _fd(weight=lambda eta, epsilon: -eta / (2 * epsilon)):
    def answer(toy, w, beta, eta, radius):
        slope, _ = toy.gradients("train", w, beta)
        v, direct = toy.gradients("held_out", w - eta * slope, beta)
        epsilon = radius / abs(v)
        plus, minus = (toy.gradients("train", w + sign * epsilon * v, beta)[1] for sign in (1, -1))
        return direct + weight(eta, epsilon) * (plus - minus)

    return answer


def _w(toy, w, beta, eta):
    return w - eta * toy.gradients("train", w, beta)[0]


def _whole(toy, w, beta, eta, rate, *, keep=False, graph=True):
    new = float(beta - rate * _unrolled(graph)(toy, w, beta, eta))
    return [_w(toy, _w(toy, w, beta, eta) if keep else w, new, eta), new]


def _count(beta, weights, limit):
    return (weights >= limit).sum(1)


WRONG = {
    "selection_factors": {
        "over the wrong axis": lambda beta, alpha: alpha / beta.shape[1] * beta.softmax(0),
        "sigmoid of each entry": lambda beta, alpha: alpha / beta.shape[1] * beta.sigmoid(),
        "raw β": lambda beta, alpha: alpha / beta.shape[1] * beta,
        "the scale is missing": lambda beta, alpha: beta.softmax(1),
        "you scale by α": lambda beta, alpha: alpha * beta.softmax(1),
        "returned shape": lambda beta, alpha: alpha / beta.shape[1] * beta.softmax(1).T,
    },
    "ranks_from_beta": {
        "so use ≥": lambda beta: (beta.softmax(1) > 1 / beta.shape[1]).sum(1),
        "compares the raw β": lambda beta: _count(beta, beta, beta.mean(1, keepdim=True)),
        "threshold of the sigmoid": lambda beta: _count(beta, beta.sigmoid(), 0.5),
        "not over the number of matrices": lambda beta: _count(beta, beta.softmax(1), 1 / len(beta)),
        "returned shape": lambda beta: (beta.softmax(1) >= 1 / beta.shape[1]).sum(0),
        "count in each row": lambda beta: _count(beta, beta.softmax(1), 0.2),
    },
    "search_step": {
        "at the old β": lambda toy, w, beta, eta, rate: (
            _w(toy, w, beta, eta), beta - rate * _unrolled(True)(toy, w, beta, eta)),
        "w moved first": lambda toy, w, beta, eta, rate: (
            _w(toy, w, beta, eta), beta - rate * _unrolled(True)(toy, _w(toy, w, beta, eta), beta, eta)),
        "only tried": lambda toy, w, beta, eta, rate: _whole(toy, w, beta, eta, rate, keep=True),
        "uphill": lambda toy, w, beta, eta, rate: _whole(toy, w, beta, eta, -rate),
        "direct part alone": lambda toy, w, beta, eta, rate: _whole(toy, w, beta, eta, rate, graph=False),
        "returned shape": lambda toy, w, beta, eta, rate: _w(toy, w, beta, eta),
        "returned nothing": lambda *at: None,
    },
    "unrolled": {
        "create_graph=True": _unrolled(False),
        "without a virtual step": lambda toy, w, beta, eta: toy.gradients("held_out", w, beta)[1],
        "uphill": lambda *at: _unrolled(True)(*at, sign=1.0),
        "η is missing": lambda toy, w, beta, eta: _unrolled(True)(toy, w, beta, 1.0),
        "it stopped": lambda toy, w, beta, eta: w.backward(),
    },
    "hypergradient_fd": {
        "η is missing": _fd(lambda eta, epsilon: -1 / (2 * epsilon)),
        "second-order part is missing": _fd(lambda eta, epsilon: 0.0),
        "sign is wrong": _fd(lambda eta, epsilon: eta / (2 * epsilon)),
        "2ε apart": _fd(lambda eta, epsilon: -eta),
        "divide the difference by 2ε": _fd(lambda eta, epsilon: -eta / epsilon),
        "returned nothing": lambda *at: None,
    },
    "retrained_scales": {
        "rows are swapped": lambda ranks, alpha, k: [[alpha / r for r in ranks], [alpha / k] * len(ranks)],
        "both rows hold s": lambda ranks, alpha, k: [[alpha / k] * len(ranks)] * 2,
        "both rows fix α": lambda ranks, alpha, k: [[alpha / r for r in ranks]] * 2,
        "that is α, not the scale": lambda ranks, alpha, k: [[alpha / k * r for r in ranks], [alpha] * len(ranks)],
        "upside down": lambda ranks, alpha, k: [[k / alpha] * len(ranks), [r / alpha for r in ranks]],
        "returned shape": lambda ranks, alpha, k: [alpha / r for r in ranks],
    },
}
RIGHT = {
    "selection_factors": lambda beta, alpha: alpha / beta.shape[1] * beta.softmax(1),
    "ranks_from_beta": lambda beta: (beta.softmax(1) >= 1 / beta.shape[1]).sum(1),
    "search_step": lambda *at: _whole(*at),
    "unrolled": _unrolled(True),
    "hypergradient_fd": _fd(),
    "retrained_scales": lambda ranks, alpha, k: [[alpha / k] * len(ranks), [alpha / r for r in ranks]],
}
