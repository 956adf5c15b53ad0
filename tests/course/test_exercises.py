"""Exercises: the library's solution passes, typical mistakes fail with the hint that helps, nothing ever stops."""

from __future__ import annotations

import html
import inspect

import picture_checks  # noqa: F401  (it imports every chapter)
import pytest
import torch
from wrong_answers import RIGHT, WRONG

from lowrank_teach.course import exercises as engine
from lowrank_teach.course.chapters import lora
from lowrank_teach.course.exercises import EXERCISES, Exercise, exercise


def made(name: str, attempt) -> Exercise:
    found = Exercise(attempt, EXERCISES[name])
    found.__name__ = name  # a lambda's would be <lambda>
    return found


@pytest.mark.parametrize(("name", "hint"), [(name, hint) for name, wrong in WRONG.items() for hint in wrong])
def test_a_typical_mistake_fails_with_its_hint(name, hint):
    verdict = made(name, WRONG[name][hint]).examine()
    assert not verdict.right
    assert hint.lower() in verdict.says.lower()


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_and_the_library_s_own_pass_and_no_mistake_is_right(name):
    task = EXERCISES[name]
    for attempt in (RIGHT[name], task.reference):
        exercise_ = made(name, attempt)
        assert exercise_.examine().right
        assert exercise_.attempt is attempt
    assert len(WRONG[name]) >= 3
    for arguments in task.cases():
        wanted = engine._array(task.seen(task.reference(*arguments)))
        mistaken = [engine._array(task.seen(wrong(*arguments))) for _, wrong in task.mistakes]
        assert not any(engine._same(wanted, one) for one in mistaken)


def test_a_wrong_stub_goes_on_with_the_library_and_a_right_one_with_itself():
    calls = []
    wrong = made("count_parameters", lambda d, k, r: 0)
    assert wrong(10, 20, 3) == 90
    right = made("count_parameters", lambda d, k, r: calls.append(1) or r * (d + k))
    right.examine()
    before = len(calls)
    assert right(10, 20, 3) == 90
    assert len(calls) == before + 1


def test_solutions_are_swapped_in(monkeypatch):
    @exercise
    def lora_merge(W, lora_A, lora_B, lora_alpha):
        raise NotImplementedError

    assert not lora_merge.examine().right
    monkeypatch.setenv("LOWRANK_SOLUTIONS", "1")
    assert exercise(lora_merge.attempt).examine().right


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="lora_merge"):
        @exercise
        def loramerge(x):
            return x


def test_the_decorator_takes_a_hint_of_its_own():
    @exercise(hint="look at the picture")
    def count_parameters(d, k, r):
        return 7

    assert count_parameters.examine().says == "look at the picture"


def test_check_says_it_and_draws_it(capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("lowrank_teach.analysis.style.show", lambda fig, caption, alt: drawn.append((fig, alt)))
    made("lora_merge", lora.lora_merge).check()
    assert capsys.readouterr().out.startswith("✓ lora_merge")
    torn = made("lora_merge", WRONG["lora_merge"]["scale is missing"])
    torn.check()
    out = capsys.readouterr().out
    assert out.startswith("✗ lora_merge, not there yet: the scale is missing")
    assert "course.solution(lora_merge)" in out
    assert len(drawn) == 2
    assert "scale is missing" in drawn[1][1]


def test_a_stub_that_nobody_changed_waits_and_is_not_judged(capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr("lowrank_teach.analysis.style.show", lambda *shown: drawn.append(shown))

    def lora_merge(W, lora_A, lora_B, lora_alpha):
        return W + lora_B @ lora_A  # nearly: find the bug

    same, changed = (engine.fingerprint(inspect.getsource(lora_merge).replace("nearly", words))
                     for words in ("nearly", "hardly"))
    assert same != changed
    for known, opening in ((same, "Not tried yet: change lora_merge"), (changed, "✗ lora_merge")):
        monkeypatch.setitem(engine.STUBS, "lora_merge", known)
        stub = exercise(lora_merge)
        stub.check()
        assert capsys.readouterr().out.startswith(opening)
        assert stub(*EXERCISES["lora_merge"].cases()[0]) is not None   # the library's
    assert len(drawn) == 1


def test_a_solution_is_folded_away_and_can_be_read_without_a_browser(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    engine.solution("truncate")
    assert shown[0]["text/html"].startswith("<details>")
    source = inspect.getsource(EXERCISES["truncate"].shows[0]).strip()
    assert source in shown[0]["text/plain"]
    assert html.escape(source) in shown[0]["text/html"]


def test_the_answers_written_for_a_reader_are_the_library_s():
    for name, task in EXERCISES.items():
        if task.answer:
            exercise_ = made(name, task.answer)
            assert exercise_.examine().right, f"{name}: {exercise_.verdict.says}"


def test_the_learner_s_tensors_are_not_the_library_s():
    W, A, B, alpha = EXERCISES["lora_merge"].cases()[0]
    before = W.clone()
    lora.lora_merge(W, A, B, alpha)
    assert torch.equal(W, before)
