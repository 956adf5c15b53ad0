"""Answers to the exercises of 03."""

import torch

from lowrank_teach.course.exercises import EXERCISES


def adam(gradient, m, v, step, lr):
    m, v, step = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, step + 1
    return -lr * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)


def towards(W, V, t):
    return W + 2 / (t + 2) * (V - W)


def pair(G):
    u, _, vh = torch.linalg.svd(G)
    return torch.outer(u[:, 0], vh[0])


def polar(G):
    u, _, vh = torch.linalg.svd(G, full_matrices=False)
    return u @ vh


WRONG = {
    "cola_tie": {
        "scale α / r is missing": lambda W, A, B, alpha: W + B @ A,
        "scale by α, the branch": lambda W, A, B, alpha: W + alpha * B @ A,
        "the transpose": lambda W, A, B, alpha: W + alpha / len(A) * A.T @ B.T,
        "shapes do not meet": lambda W, A, B, alpha: W + alpha / len(A) * A @ B,
        "in there twice": lambda W, A, B, alpha: W + 2 * alpha / len(A) * B @ A,
        "the link alone": lambda W, A, B, alpha: alpha / len(A) * B @ A,
        "changed its own input": lambda W, A, B, alpha: W.add_(alpha / len(A) * B @ A),
        "subtracted": lambda W, A, B, alpha: W - alpha / len(A) * B @ A,
        "returned nothing": lambda W, A, B, alpha: None,
    },
    "cola_extend": {
        "count twice": lambda A, B, fresh: torch.cat([A, B.T], 1),
        "B is still the old one": lambda A, B, fresh: torch.cat([fresh, B.T], 1),
        "A is still the old one": lambda A, B, fresh: torch.cat([A, torch.zeros_like(B.T)], 1),
        "never starts": lambda A, B, fresh: torch.zeros(len(A), A.shape[1] + len(B)),
        "A takes the fresh draw": lambda A, B, fresh: torch.cat([0 * fresh, B.T], 1),
        "shapes do not meet": lambda A, B, fresh: torch.cat([fresh, 0 * B], 1),
    },
    "move_after_knot": {
        "moments are kept": adam,
        "but the step count is not": lambda g, m, v, step, lr: adam(g, 0 * m, 0 * v, step, lr),
        "only the step count": lambda g, m, v, step, lr: adam(g, m, v, 0, lr),
        "only exp_avg": lambda g, m, v, step, lr: adam(g, 0 * m, v, 0, lr),
        "uphill": lambda g, m, v, step, lr: -adam(g, 0 * m, 0 * v, 0, lr),
        "three things start from zero": lambda g, m, v, step, lr: -lr * g,
    },
    "cola_epochs": {
        "not in whole epochs": lambda epochs, links: [epochs / links] * links,
        "wrong order": lambda epochs, links: [epochs // links + (i >= links - epochs % links) for i in range(links)],
        "after which the knots come": lambda epochs, links: [
            sum(RIGHT["cola_epochs"](epochs, links)[:i + 1]) for i in range(links)],
        "takes all that is over": lambda epochs, links: [
            epochs // links + (epochs % links if i == 0 else 0) for i in range(links)],
        "epochs are lost": lambda epochs, links: [epochs // links] * links,
        "returned shape": lambda epochs, links: [3],
    },
    "chain_rank": {
        "do not multiply": lambda ranks, d, k: torch.tensor(ranks).prod(),
        "widest link": lambda ranks, d, k: max(ranks),
        "cap the sum": lambda ranks, d, k: sum(ranks),
        "add up at most": lambda ranks, d, k: len(ranks),
        "ranks of a sum": lambda ranks, d, k: min(d, k),
        "returned nothing": lambda ranks, d, k: None,
    },
    "frank_wolfe_step": {
        "carries a minus": lambda W, G, radius, t: towards(W, radius * pair(G), t),
        "radius is missing": lambda W, G, radius, t: towards(W, -pair(G), t),
        "does not shrink": lambda W, G, radius, t: W - 2 / (t + 2) * radius * pair(G),
        "only the first pair": lambda W, G, radius, t: towards(W, -radius * polar(G), t),
        "along the gradient": lambda W, G, radius, t: towards(W, -radius * G / G.norm(), t),
        "step size is": lambda W, G, radius, t: towards(W, -radius * pair(G), t - 1),
    },
    "prune_moments": {
        "other way round": lambda moment, share: moment - RIGHT["prune_moments"](moment, share),
        "that was to be dropped": lambda moment, share: RIGHT["prune_moments"](moment, 1 - share),
        "signs": lambda moment, share: moment * (
            moment >= moment.flatten().sort().values[-round(share * moment.numel())]),
        "all entries shrink": lambda moment, share: share * moment,
        "the mask alone": lambda moment, share: (RIGHT["prune_moments"](moment, share) != 0).float(),
        "keep the entries": lambda moment, share: torch.zeros_like(moment),
        "returned nothing": lambda moment, share: None,
    },
}
RIGHT = {name: EXERCISES[name].answer for name in WRONG}
