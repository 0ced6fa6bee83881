"""best_of_k.py: scored, selected, paired, judged; one sampling for three methods."""

import json
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, recipe
from servers import Server, completion
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_prep.best_of_k import BestOfKConfig, distinct, length, select
from data_prep.scoring.judge import VERDICTS, tally
from utils.data import is_held_out, prompt_key
from utils.model import read_template

BASE = {"score_funcs": ["exact_match"]}


def response(text, tokens=5, finish="stop", **more):
    message = {"role": "assistant", "content": text}
    return {"completion": [message], "finish_reason": finish, "prompt_tokens": 3, "completion_tokens": tokens} | more


def row(number, *responses):
    prompt = [{"role": "user", "content": f"What is {number} + 1?"}]
    return {"prompt": prompt, "answer": str(number + 1), "responses": list(responses)}


def sums(count, right=2, wrong=2):
    """Prompts with so many right and wrong responses, all different."""
    return [
        row(
            n,
            *(response(f"So {'so ' * k}it goes. The answer is {n + 1}.", 9 + k) for k in range(right)),
            *(response(f"The answer is {n + 2 + k}.", 4) for k in range(wrong)),
        )
        for n in range(count)
    ]


def run(folder, rows, *flags, **settings):
    (folder / "generated.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return subprocess.run([*command(folder, **settings), *flags], capture_output=True, text=True, timeout=300)


def command(folder, **settings):
    settings = BASE | {"dataset_name": str(folder / "generated.jsonl")} | settings
    settings |= {key: str(folder / value) for key, value in settings.items() if key.endswith("_to") and value}
    path = folder / "best.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return [sys.executable, str(ROOT / "data_prep/best_of_k.py"), "--config", str(path)]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def choose(responses, number=0, **settings):
    return select(row(0, *responses), responses, BestOfKConfig(**settings), number)


def scored(text, score, tokens=5, **more):
    return response(text, tokens, **more) | {"score": score, "right": score is not None and score >= 1}


def test_the_best_and_of_equals_the_shorter():
    found = choose([scored("a", 0.0, 1), scored("b", 1.0, 9), scored("c", 1.0, 4), scored("d", 0.5, 2)])
    assert found["best_to"][0]["completion"][0]["content"] == "c"
    assert found["best_to"][0]["score"] == 1.0
    assert "responses" not in found["best_to"][0]


def test_ties_are_drawn_with_the_seed():
    equal = [scored(letter, 1.0) for letter in "abcdefgh"]
    drawn = [choose(equal, number)["best_to"][0]["completion"][0]["content"] for number in range(40)]
    assert len(set(drawn)) > 4
    assert drawn == [choose(equal, number)["best_to"][0]["completion"][0]["content"] for number in range(40)]
    other = [choose(equal, number, seed=1)["best_to"][0]["completion"][0]["content"] for number in range(40)]
    assert drawn != other


def test_what_was_cut_off_or_is_empty_is_not_selected():
    responses = [scored("cut", 1.0, 1, finish="length"), scored("", 1.0, 0), scored("whole", 0.5)]
    found = choose(responses)
    assert found["best_to"][0]["completion"][0]["content"] == "whole"
    assert choose(responses, least_score=1.0)["best_to"] == []
    assert choose(responses[:2])["best_to"] == []
    assert choose(responses, keep_truncated=True)["best_to"][0]["score"] == 1.0


def test_right_ones_that_differ():
    responses = [scored("The  answer IS 1.", 1.0, 5), scored("the answer is 1.", 1.0, 6), scored("It is 1.", 1.0, 7)]
    found = choose([*responses, scored("It is 2.", 0.0)])
    assert [r["completion"][0]["content"] for r in found["correct_to"]] == ["The  answer IS 1.", "It is 1."]
    assert len(choose(responses, correct_per_prompt=1)["correct_to"]) == 1
    assert list(distinct([])) == []


def test_pairs_have_a_margin():
    pair = choose([scored("best", 0.9), scored("middle", 0.6), scored("worst", 0.3)])["pairs_to"][0]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("best", "worst")
    assert (pair["score_chosen"], pair["score_rejected"]) == (0.9, 0.3)
    assert choose([scored("a", 0.9), scored("b", 0.5)])["pairs_to"] == []
    assert choose([scored("a", 1.0)])["pairs_to"] == []
    assert choose([scored("a", 1.0), scored("b", 1.0)], least_margin=1e-6)["pairs_to"] == []


@pytest.mark.parametrize(("right", "kept"), [(0, False), (1, True), (3, True), (4, False)])
def test_prompts_in_a_band(right, kept):
    responses = [scored("x", 1.0)] * right + [scored("y", 0.0)] * (4 - right)
    found = choose(responses)["prompts_to"]
    assert [r["pass_rate"] for r in found] == ([right / 4] if kept else [])


def test_a_response_without_a_score_is_left_out():
    found = choose([scored("a", None), scored("b", 0.0), scored("c", 1.0)])
    assert found["best_to"][0]["completion"][0]["content"] == "c"
    assert found["prompts_to"][0]["pass_rate"] == 0.5
    assert all(not rows for rows in choose([scored("a", None)]).values())


def test_lengths_without_counted_tokens():
    assert length(response("four", None)) == 4


def test_one_sampling_serves_three_methods(tmp_path):
    """And what is written trains, by the real command lines."""
    rows = sums(60)
    outputs = {"best_to": "best.jsonl", "correct_to": "right.jsonl", "pairs_to": "pairs.jsonl"}
    outputs |= {"prompts_to": "prompts.jsonl", "heldout_to": "held.jsonl", "heldout_fraction": 0.2}
    done = run(tmp_path, rows, **outputs)
    assert done.returncode == 0, done.stderr
    held = {json.dumps(r["prompt"]) for r in rows if is_held_out(prompt_key(r), 0.2)}
    assert 4 < len(held) < 25
    files = {name: read(tmp_path / outputs[name]) for name in outputs if name.endswith("_to")}
    assert {json.dumps(r["prompt"]) for r in files["heldout_to"]} == held
    for name in ("best_to", "correct_to", "pairs_to", "prompts_to"):
        assert not {json.dumps(r["prompt"]) for r in files[name]} & held
    assert len(files["best_to"]) == 60 - len(held)
    assert len(files["correct_to"]) == 2 * len(files["best_to"])
    assert {r["pass_rate"] for r in files["prompts_to"]} == {0.5}
    manifest = json.loads((tmp_path / "pairs.manifest.json").read_text())
    assert manifest["counts"]["right"] == 0.5
    assert manifest["outputs"][str(tmp_path / "pairs.jsonl")]["rows"] == len(files["pairs_to"])
    small = {"max_steps": 2, "output_dir": tmp_path / "sft", "heldout_name": tmp_path / "held.jsonl"}
    done = recipe(dataset_name=tmp_path / "best.jsonl", **small)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "sft/metrics.json").read_text())
    assert not {"heldout_in_training", "duplicate_rows"} & {f["name"] for f in report["findings"]}
    small = {"output_dir": tmp_path / "dpo", "model_name_or_path": tmp_path / "sft", "heldout_name": "null"}
    small |= {"dataset_name": tmp_path / "pairs.jsonl", "eval_metrics": "exact_match", "eval_guards": "{}"}
    done = recipe("--check", script="dpo/train.py", config="configs/dpo_tiny.yaml", **small)
    assert done.returncode == 0, done.stderr
    small |= {"output_dir": tmp_path / "grpo", "dataset_name": tmp_path / "prompts.jsonl"}
    small |= {"per_device_train_batch_size": 16, "save_steps": 8, "accept": "gold_not_best"}
    done = recipe("--check", script="online_rl/train.py", config="configs/grpo_tiny.yaml", **small)
    assert "prompts.jsonl" not in done.stderr, done.stderr  # its rows are read; what a run of two steps learnt is not


def test_the_same_again_is_finished(tmp_path):
    assert run(tmp_path, sums(4), best_to="out.jsonl").returncode == 0
    done = run(tmp_path, sums(4), best_to="out.jsonl")
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True)
    done = run(tmp_path, sums(5), best_to="out.jsonl")
    assert (done.returncode, "was made with other settings" in done.stderr) == (2, True)
    assert run(tmp_path, sums(5), "--start_over", best_to="out.jsonl").returncode == 0
    assert len(read(tmp_path / "out.jsonl")) == 5


def test_several_scores_are_weighed(tmp_path):
    done = run(
        tmp_path, sums(3), best_to="out.jsonl", score_funcs=["exact_match", "ends_with_answer"], score_weights=[2, 0.5]
    )
    assert done.returncode == 0, done.stderr
    assert {r["score"] for r in read(tmp_path / "out.jsonl")} == {2.5}


def test_a_reward_model_scores(tmp_path):
    judge = AutoModelForSequenceClassification.from_pretrained(ROOT / "tiny/base", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    tokenizer.chat_template = read_template("qwen3")
    for part in (judge, tokenizer):
        part.save_pretrained(tmp_path / "judge")
    done = run(tmp_path, sums(5), best_to="out.jsonl", score_funcs=[str(tmp_path / "judge")], passes_at=0.0)
    assert done.returncode == 0, done.stderr
    assert len({r["score"] for r in read(tmp_path / "out.jsonl")}) > 1
    rows = read(tmp_path / "out.jsonl")
    for alone, best in zip(sums(5), rows, strict=True):  # each by itself, so without padding: the same
        texts = [alone["prompt"] + response["completion"] for response in alone["responses"]]
        ids = [tokenizer.apply_chat_template(text, return_tensors="pt")["input_ids"] for text in texts]
        assert best["score"] == pytest.approx(max(float(judge(one).logits[0, 0].detach()) for one in ids), abs=1e-5)
    tokenizer.pad_token = tokenizer.eos_token  # EOS may not be taken for padding, nor an empty tokenizer for its own
    tokenizer.save_pretrained(tmp_path / "judge")
    done = run(tmp_path, sums(5), "--start_over", best_to="out.jsonl", score_funcs=[str(tmp_path / "judge")])
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out.jsonl") == rows
    judge.save_pretrained(tmp_path / "bare")
    done = run(tmp_path, sums(5), best_to="bare.jsonl", score_funcs=[str(tmp_path / "bare")])
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    done = run(tmp_path, sums(5), best_to="other.jsonl", score_funcs=[str(ROOT / "tiny/base")])
    assert (done.returncode, "is not a reward model" in done.stderr) == (2, True)


def test_what_was_scored_is_not_scored_again(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def score(completions, **columns):\n"
        "    with open('calls', 'a') as file:\n"
        "        file.write(f'{len(completions)}\\n')\n"
        "    time.sleep(0.5)\n"
        "    return [float(len(c[-1]['content'])) for c in completions]\n"
    )
    settings = {"score_funcs": ["slow.score"], "best_to": "out.jsonl"}
    (tmp_path / "generated.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sums(1200)))
    words = command(tmp_path, **settings)
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "calls").exists() or (tmp_path / "calls").read_text().count("\n") < 3:
        time.sleep(0.01)
    process.kill()  # in the third lot
    process.wait()
    assert not (tmp_path / "out.jsonl").exists()
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(n) for n in (tmp_path / "calls").read_text().split()] == [1024, 1024, 1024, 1024, 1024, 704]
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 1200
    assert all(r["score"] == len(r["completion"][-1]["content"]) for r in rows)
    assert not list(tmp_path.glob("*.journal.jsonl"))  # a function's scores cost little


@pytest.mark.parametrize(
    ("reply", "mode", "wanted"),
    [
        ("**Score:** **9**", "score", "9"), ("Score: 10", "score", "10"), ("**Score**: 7/10", "score", "7"),
        ("Score: \\boxed{8}", "score", "8"), ("Score: 7.5", "score", None), ("Score 3, no: Score: 4", "score", "4"),
        ("Verdict: Response A", "pairs", "a"), ("**Verdict:** **B**", "pairs", "b"), ("verdict: TIE", "pairs", "tie"),
        ("Verdict: about equal", "pairs", None),
    ],
)  # fmt: skip
def test_verdicts_are_read(reply, mode, wanted):
    found = VERDICTS[mode].findall(reply)
    assert (found[-1].lower() if found else None) == wanted


def test_what_is_cut_off_counts_as_wrong_in_a_pass_rate():
    right = [scored("a", 1.0, finish=reason) for reason in ("stop", None, "length", "content_filter", "error")]
    assert choose(right)["prompts_to"][0]["pass_rate"] == 0.4
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    waiting = {
        "completion": [{"role": "assistant", "content": "x", "tool_calls": [call]}],
        "score": 1.0,
        "right": True,
    }
    assert choose([scored("a", 0.2), waiting | {"finish_reason": "stop"}])["best_to"][0]["score"] == 0.2


def test_a_margin_is_met_exactly():
    assert choose([scored("a", 0.7), scored("b", 0.2)], least_margin=0.5)["pairs_to"]


def test_a_response_that_one_function_cannot_score_is_not_selected(tmp_path, monkeypatch):
    """A dotted path may name any callable."""
    (tmp_path / "mine.py").write_text(
        "import functools\n"
        "def model(completions, sign=1, **_):\n"
        "    return [None if 'so so' in c[-1]['content'] else -3.0 * sign for c in completions]\n"
        "judge = functools.partial(model, sign=2)\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path, sums(4, right=3), score_funcs=["mine.judge", "exact_match"], best_to="out.jsonl")
    assert (done.returncode, "4 responses have no score" in done.stdout) == (0, True), done.stdout + done.stderr
    assert {r["score"] for r in read(tmp_path / "out.jsonl")} == {-5.0}


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        ("float('nan')", 2, "returns nan for row 1, which is not a score"),
        ("'7'", 2, "returns '7' for row 1, which is not a score"),
        ("None if len(c[-1]['content']) < 20 else 1.0", 0, "8 responses have no score"),
    ],
)
def test_what_is_not_a_score(tmp_path, monkeypatch, given, code, text):
    (tmp_path / "mine.py").write_text(f"def score(completions, **_):\n    return [{given} for c in completions]\n")
    monkeypatch.chdir(tmp_path)
    done = run(
        tmp_path, sums(4), score_funcs=["mine.score"], best_to="out.jsonl", prompts_to="p.jsonl", pass_rate=[1, 1]
    )
    assert (done.returncode, text in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
    if code == 0:  # a score that does not apply is no evidence about the prompt
        assert len(read(tmp_path / "p.jsonl")) == 4


def test_an_error_in_the_users_function_names_its_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def score(answer, **_):\n    return [float(gold['x']) for gold in answer]\n")
    monkeypatch.chdir(tmp_path)
    done = run(tmp_path, sums(2), score_funcs=["mine.score"], best_to="out.jsonl")
    assert (done.returncode, "mine.score cannot score row 1: TypeError" in done.stderr) == (2, True), done.stderr
    assert "at mine.py:2, in " in done.stderr


def test_every_output_counts(tmp_path):
    """A missing one is made again, somebody else's is not replaced."""
    settings = {"best_to": "out.jsonl", "pairs_to": "pairs.jsonl"}
    assert run(tmp_path, sums(4), **settings).returncode == 0
    (tmp_path / "pairs.jsonl").unlink()
    assert run(tmp_path, sums(4), **settings).returncode == 0
    assert len(read(tmp_path / "pairs.jsonl")) == 4
    (tmp_path / "pairs.manifest.json").unlink()
    done = run(tmp_path, sums(4), **settings)
    assert (done.returncode, "no manifest says how it was made" in done.stderr) == (2, True)


def judge_of(verdict):
    """A judge that sees whether each shown answer is right, first to last."""

    def behave(body, tries):
        text = body["messages"][-1]["content"]
        gold = int(re.search(r"What is (\d+)", text)[1]) + 1
        answers = [int(n) for n in re.findall(r"answer is (\d+)", text)]
        return 200, completion(verdict([answer == gold for answer in answers]))

    return behave


def test_a_judge_scores_by_a_rubric(tmp_path):
    def verdict(right):
        return "It may be 3 of 10 at first sight.\nScore: " + ("10" if right[0] else "1")

    with Server(judge_of(verdict)) as server:
        settings = {"base_urls": [server.url], "judge_model": "m", "judge_rubric": "Is it right, and kind?"}
        done = run(tmp_path, sums(5), best_to="out.jsonl", score_funcs=["judge"], **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Is it right, and kind?" in server.bodies[0]["messages"][0]["content"]
        assert len(server.asked) == 20
        assert {r["score"] for r in read(tmp_path / "out.jsonl")} == {1.0}
        # Verdicts serve other selections too, but not another rubric.
        done = run(tmp_path, sums(5), pairs_to="pairs.jsonl", score_funcs=["judge"], **settings)
        assert (done.returncode, len(server.asked), len(read(tmp_path / "pairs.jsonl"))) == (0, 20, 5), done.stderr
        nowhere = settings | {"base_urls": ["http://127.0.0.1:9/v1"]}  # and no server is needed
        done = run(tmp_path, sums(5), prompts_to="prompts.jsonl", score_funcs=["judge"], pass_rate=[0, 1], **nowhere)
        assert done.returncode == 0, done.stderr
        settings["judge_rubric"] = "Is it long?"
        assert run(tmp_path, sums(5), correct_to="right.jsonl", score_funcs=["judge"], **settings).returncode == 0
        assert len(server.asked) == 40


def test_pairs_are_judged_in_both_orders(tmp_path):
    """A judge that always prefers the first response finds nothing; one that reads finds the right one."""

    def reads(right):
        return "Verdict: " + ("tie" if right[0] == right[1] else "A" if right[0] else "B")

    for name, verdict, scores in (("first", lambda right: "Verdict: A", {0.5}), ("reads", reads, {1.0})):
        with Server(judge_of(verdict)) as server:
            settings = {"base_urls": [server.url], "judge_model": "m", "judge_mode": "pairs", "score_funcs": ["judge"]}
            settings |= {"judge_rubric": name}
            done = run(tmp_path, sums(5, right=1, wrong=1), best_to=f"{name}.jsonl", **settings)
            assert done.returncode == 0, done.stdout + done.stderr
            assert len(server.asked) == 10
        assert {r["score"] for r in read(tmp_path / f"{name}.jsonl")} == scores


def test_verdicts_are_counted():
    questions = [(0, a, b) for a in range(3) for b in range(3) if a != b]
    best = {(0, 1): "a", (1, 0): "b", (0, 2): "a", (2, 0): "b", (1, 2): "tie", (2, 1): "a"}
    verdicts = [best[a, b] for _, a, b in questions]
    assert tally(questions, verdicts, [(0, 0), (0, 1), (0, 2)], "pairs") == [1.0, 0.25, 0.25]
    verdicts[questions.index((0, 1, 2))] = None
    assert tally(questions, verdicts, [(0, 0), (0, 1), (0, 2)], "pairs") == [1.0, None, None]
    assert tally([(0, 0, 0)] * 2, ["10", None], [(0, 0), (0, 1)], "score") == [1.0, None]


def test_a_judge_without_a_verdict_is_reported_and_asked_again(tmp_path):
    def vague(body, tries):
        return 200, completion("Hard to say." if "What is 2 " in str(body["messages"]) else "Score: 7")

    settings = {"judge_model": "m", "best_to": "out.jsonl", "score_funcs": ["judge"]}
    with Server(vague) as server:
        done = run(tmp_path, sums(4), base_urls=[server.url], **settings)
        assert done.returncode == 3
        assert "4 verdicts are missing" in done.stdout
        assert "4 responses have no score" in done.stdout
        assert "has no verdict" in done.stdout
    assert len(read(tmp_path / "out.jsonl")) == 3
    with Server(lambda body, tries: (200, completion("Score: 7"))) as server:
        done = run(tmp_path, sums(4), base_urls=[server.url], **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(server.asked) == 4
    assert len(read(tmp_path / "out.jsonl")) == 4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"score_funcs": ["exact_macth"]}, "is not a reward"),
        ({"score_funcs": []}, "score_funcs: is missing"),
        ({"score_funcs": ["judge"]}, "a judge needs judge_model and base_urls"),
        ({"score_funcs": ["repetition_penalty"]}, "needs completion_ids"),
        ({"score_weights": [1.0, 2.0]}, "one number for each"),
        ({"pass_rate": [0.9, 0.1]}, "the least and the greatest share"),
        ({"heldout_to": "held.jsonl"}, "together with heldout_fraction"),
        ({"best_to": None}, "name what to write"),
        ({"correct_to": "out.jsonl"}, "is also best_to. Name another file"),
        ({"pairs_to": "generated.jsonl"}, "is also an input"),
        ({"best_to": "out.txt"}, "must end with .jsonl"),
        ({"bets_to": "x"}, "did you mean best_to?"),
        ({"dataset_name": "nowhere.jsonl"}, "there is no file"),
    ],
)
def test_a_users_mistake_is_one_message(tmp_path, settings, text):
    done = run(tmp_path, sums(2), **({"best_to": "out.jsonl"} | settings))
    assert done.returncode == 2, done.stdout
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"prompt": "text", "completion": "no"}, ":3: has no prompt and responses"),
        (row(1) | {"responses": [{"text": "x"}]}, ":3: a response has no completion"),
        (row(1, response("x")) | {"answer": "no number"}, "exact_match cannot score row 3"),
    ],
)
def test_a_bad_row_is_named(tmp_path, bad, text):
    done = run(tmp_path, [*sums(2), bad], best_to="out.jsonl")
    assert done.returncode == 2
    assert text in done.stderr
