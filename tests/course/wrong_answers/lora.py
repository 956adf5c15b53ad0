"""Answers to the exercises of 02."""

import torch


def _start(d, k, r, seed, A=lambda u, k: (2 * u - 1) / k ** 0.5, B=lambda u, d: torch.zeros(u.shape[0], d)):
    u = torch.rand(r, k, generator=torch.Generator().manual_seed(seed))
    return torch.cat([A(u, k), B(u, d)], dim=1)


WRONG = {
    "lora_start": {
        "both start at zero": lambda d, k, r, seed: torch.zeros(r, k + d),
        "swapped": lambda d, k, r, seed: _start(d, k, r, seed).roll(k, dims=1),
        "both are drawn": lambda d, k, r, seed: _start(d, k, r, seed, B=lambda u, d: (2 * u - 1) / d ** 0.5),
        "B starts at ones": lambda d, k, r, seed: _start(d, k, r, seed, B=lambda u, d: torch.ones(len(u), d)),
        "u runs from 0 to 1": lambda d, k, r, seed: _start(d, k, r, seed, A=lambda u, k: u / k ** 0.5),
        "bound is missing": lambda d, k, r, seed: _start(d, k, r, seed, A=lambda u, k: 2 * u - 1),
        "not 1/k": lambda d, k, r, seed: _start(d, k, r, seed, A=lambda u, k: (2 * u - 1) / k),
        "so Bᵀ (r, d) stands beside": lambda d, k, r, seed: torch.cat([torch.rand(r, k), torch.zeros(d, r)], dim=1),
        "spread u evenly": lambda d, k, r, seed: _start(d, k, r, seed, A=lambda u, k: u,
                                                        B=lambda u, d: torch.ones(len(u), d)),
        "returned nothing": lambda d, k, r, seed: None,
    },
    "keep_scale": {
        "moves with the rank": lambda alpha, r, new: alpha,
        "that is s itself": lambda alpha, r, new: alpha / r,
        "wrong way round": lambda alpha, r, new: alpha * r / new,
        "by the new rank alone": lambda alpha, r, new: alpha * new,
        "what must α be": lambda alpha, r, new: alpha / new,
        "returned nothing": lambda alpha, r, new: None,
    },
    "lora_forward": {
        "scale is missing": lambda x, W, A, B, alpha: x @ W.T + x @ A.T @ B.T,
        "scale by α, LoRA": lambda x, W, A, B, alpha: x @ W.T + alpha * x @ A.T @ B.T,
        "scale by r / α": lambda x, W, A, B, alpha: x @ W.T + len(A) / alpha * x @ A.T @ B.T,
        "reads x first": lambda x, W, A, B, alpha: x @ W.T + alpha / len(A) * x @ B.T @ A.T,
        "W is missing": lambda x, W, A, B, alpha: alpha / len(A) * x @ A.T @ B.T,
        "branch s · B A is missing": lambda x, W, A, B, alpha: x @ W.T,
        "subtracted": lambda x, W, A, B, alpha: x @ W.T - alpha / len(A) * x @ A.T @ B.T,
        "not to W": lambda x, W, A, B, alpha: alpha / len(A) * (x @ W.T + x @ A.T @ B.T),
        "returned shape": lambda x, W, A, B, alpha: (x @ W.T + alpha / len(A) * x @ A.T @ B.T).T,
        "still the stub": lambda x, W, A, B, alpha: (_ for _ in ()).throw(NotImplementedError),
    },
    "lora_merge": {
        "scale is missing": lambda W, A, B, alpha: W + B @ A,
        "scale by α, LoRA": lambda W, A, B, alpha: W + alpha * B @ A,
        "shapes do not meet": lambda W, A, B, alpha: W + alpha / len(A) * A @ B,
        "W is missing": lambda W, A, B, alpha: alpha / len(A) * B @ A,
        "changed its own input": lambda W, A, B, alpha: W.add_(alpha / len(A) * B @ A),
        "returned nothing": lambda W, A, B, alpha: None,
    },
    "count_parameters": {
        "W is frozen": lambda d, k, r: d * k,
        "that is A alone": lambda d, k, r: r * k,
        "r of them": lambda d, k, r: d + k,
        "do not multiply": lambda d, k, r: (d * r) * (r * k),
        "is not counted": lambda d, k, r: d * k + r * (d + k),
        "returned nothing": lambda d, k, r: None,
        "how many does B hold": lambda d, k, r: 7,
    },
}
RIGHT = {
    "lora_start": _start,
    "keep_scale": lambda alpha, r, new: alpha * new / r,
    "lora_forward": lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T,
    "lora_merge": lambda W, A, B, alpha: W + alpha / len(A) * B @ A,
    "count_parameters": lambda d, k, r: r * (d + k),
}
