"""Every method on every device and precision there is: alive, finite, and on a GPU the same run as on the CPU."""

from __future__ import annotations

import pytest
import torch
from helpers import collate, make_rows, tiny

import lowrank_teach as lt
from lowrank_teach.outcome import Outcome
from lowrank_teach.replicas import train_together
from lowrank_teach.stacked import share_weights
from lowrank_teach.train import Trainer

METHODS = {
    "lora": lt.LoRA(r=4),
    "cola": lt.COLA(r=4, knots=(4, 8), ranks=(4, 2, 3)),
    "cola-stacked": lt.COLA(r=4, chain=3, merge_knots=False),
    "salora": lt.SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=10),
    "delta-in-place": lt.DeltaLoRA(r=4, K=3),
    "delta-lazy": lt.DeltaLoRA(r=4, K=3, form="lazy"),
    "delta-schedule": lt.DeltaLoRA(r=4, K=3, lam=0.1, lam_end=1.0),
    **{f"autolora-{kind}": lt.AutoLoRA(r=4, hypergradient=kind)
       for kind in ("first_order", "finite_difference", "unrolled", "betty")},
    "full": lt.FullFineTuning(),
}
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here")])]


def trainer_on(device: str, method: lt.Method, model, steps: int = 12, **training) -> Trainer:
    config = lt.TrainConfig(steps=steps, batch_size=8, lr=3e-3, **training)
    return Trainer(lt.adapt(model, method, seed=0), make_rows(64), collate, config, seed=0, cpu=device == "cpu")


def losses_of(outcome: Outcome) -> torch.Tensor:
    return torch.tensor([value for _, _, name, value in outcome.history if name == "loss"])


def train(method: lt.Method, device: str, dtype: torch.dtype = torch.float32, steps: int = 12, **training):
    """The adapters and the losses of a short run without dropout."""
    trainer = trainer_on(device, method, tiny("bert", dropout=0.0).to(dtype), steps, **training)
    outcome = trainer.run()
    return trainer.adapters, losses_of(outcome)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
                         ids=["float32", "autocast-bf16", "bf16-base"])
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_merges(name: str, dtype: torch.dtype, mixed: str, device: str) -> None:
    if name == "full" and dtype == torch.bfloat16:
        pytest.skip("full fine-tuning of a bf16 base would train in bf16: not a setting of the papers")
    adapters, losses = train(METHODS[name], device, dtype, mixed_precision=mixed)
    assert torch.isfinite(losses).all()
    assert {p.device.type for p in adapters.model.parameters()} == {device}
    if not adapters:
        return
    assert all(branch.lora_A.dtype == torch.float32 for branch in adapters.values()), "adapters stay in float32"
    batch = {k: v.to(device) for k, v in collate(make_rows(8)).items()}
    adapters.model.eval()
    with torch.no_grad():
        before = adapters.model(**batch).logits.float()
        adapters.merge()
        merged = adapters.model(**batch).logits.float()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(merged, before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
                         ids=["float32", "autocast-bf16", "bf16-base"])
def test_replicas_follow_their_single_runs(dtype: torch.dtype, mixed: str, device: str) -> None:
    names = [name for name, method in METHODS.items() if not (method.beside().writes_base or method.trains_base)]
    base, trainers = tiny("bert", dropout=0.0).to(dtype), []
    for name in names:
        model = tiny("bert", dropout=0.0).to(dtype)
        share_weights(model, base, ["classifier.weight", "classifier.bias"])
        trainers.append(trainer_on(device, METHODS[name].beside(), model, mixed_precision=mixed))
    tolerance = 1e-3 if (dtype, mixed) == (torch.float32, "no") else 5e-2
    for name, outcome in zip(names, train_together(trainers), strict=True):
        assert isinstance(outcome, Outcome), f"{name}: {outcome}"
        _, alone = train(METHODS[name].beside(), device, dtype, mixed_precision=mixed)
        torch.testing.assert_close(losses_of(outcome), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", METHODS)
def test_gpu_run_equals_cpu_run(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    _, on_cpu = train(METHODS[name], "cpu")
    _, on_gpu = train(METHODS[name], "cuda")
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
