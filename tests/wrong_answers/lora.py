"""Answers to the exercises of 02."""

WRONG = {
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
    "lora_forward": lambda x, W, A, B, alpha: x @ (W + alpha / len(A) * B @ A).T,
    "lora_merge": lambda W, A, B, alpha: W + alpha / len(A) * B @ A,
    "count_parameters": lambda d, k, r: r * (d + k),
}
