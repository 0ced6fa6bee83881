"""generate.py by its real command line: local and served, killed, refused, answered with garbage."""

import asyncio
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from conftest import ROOT, digest
from servers import Server, completion, plain
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.generate import to_prompt_row
from data_prep.sampling import server as server_py
from data_prep.sampling.local import transformers_engine
from data_prep.sampling.replies import Unreadable, message_of, read_answer
from data_prep.sampling.requests import seed_of, to_api_messages
from data_prep.sampling.server import Replica, ServerConfig, Servers, read_retry_after
from utils.model import read_template

LOCAL = {
    "model_name_or_path": "tiny/base", "chat_template": "qwen3", "dataset_name": "tiny/data/grpo.jsonl", "prompts": 12,
    "num_responses": 3, "max_new_tokens": 6, "batch_size": 8,
}  # fmt: skip
SERVED = {"model_name_or_path": "m", "num_responses": 3, "max_retries": 2, "timeout": 1.0, "concurrency": 4}


def command(folder, **settings):
    path = folder / "generate.yaml"
    settings = {"output_file": str(folder / "made.jsonl")} | settings
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items()))
    return [sys.executable, str(ROOT / "data_prep/generate.py"), "--config", str(path)]


def generate(folder, *flags, **settings):
    return subprocess.run([*command(folder, **settings), *flags], capture_output=True, text=True, timeout=300)


def prompts(folder, count):
    rows = [{"prompt": f"Question {n}", "answer": str(n)} for n in range(count)]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def served(folder, *servers, count=6, **settings):
    urls = [server.url for server in servers]
    return generate(folder, **(SERVED | {"dataset_name": prompts(folder, count), "base_urls": urls} | settings))


@pytest.fixture(scope="module")
def made_locally(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = generate(folder, **LOCAL)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_local_model_answers(made_locally):
    rows = read(made_locally / "made.jsonl")
    assert len(rows) == 12
    gold = read(ROOT / "tiny/data/grpo.jsonl")
    for row, task in zip(rows, gold, strict=False):
        assert row["prompt"] == [{"role": "user", "content": task["question"]}]
        assert row["answer"] == task["answer"]
        assert len(row["responses"]) == 3
        assert all(response["completion_tokens"] <= 6 for response in row["responses"])
    assert len({json.dumps(row["responses"]) for row in rows}) > 1
    manifest = json.loads((made_locally / "made.manifest.json").read_text())
    assert manifest["counts"]["prompts"] == 12
    assert manifest["counts"]["responses"] == 36
    made = {"rows": 12, "sha256": digest(made_locally / "made.jsonl")}
    assert manifest["outputs"] == {str(made_locally / "made.jsonl"): made}
    assert manifest["settings"]["weights"]
    assert not (made_locally / "made.journal.jsonl").exists()
    assert not (made_locally / "made.failed.jsonl").exists()


def test_the_same_again_is_finished_and_another_is_refused(made_locally):
    before = (made_locally / "made.jsonl").stat().st_mtime_ns
    done = generate(made_locally, **LOCAL)
    assert (done.returncode, "nothing to do" in done.stdout) == (0, True)
    done = generate(made_locally, **LOCAL, temperature=0.5)
    assert done.returncode == 2
    assert "temperature: 1.0 -> 0.5" in done.stderr
    assert (made_locally / "made.jsonl").stat().st_mtime_ns == before


def kill_at_random(words, journal, kills, rng, after_kill=lambda: None):
    """Start, let the journal grow, kill; `kills` times, then to the end. Returns how often it was killed at work."""
    killed = 0
    for _ in range(kills):
        size = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and (journal.stat().st_size if journal.exists() else 0) <= size:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.08))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        after_kill()
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return killed


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_one_left_alone(tmp_path, kills):
    (tmp_path / "a").mkdir()
    settings = LOCAL | {"prompts": 100, "batch_size": 4}
    whole = generate(tmp_path, **settings, output_file=str(tmp_path / "whole.jsonl"))
    assert whole.returncode == 0, whole.stderr
    words = command(tmp_path / "a", **settings)
    killed = kill_at_random(words, tmp_path / "a/made.journal.jsonl", kills, random.Random(5))
    assert killed >= kills * 0.9
    assert digest(tmp_path / "a/made.jsonl") == digest(tmp_path / "whole.jsonl")


def test_nothing_is_requested_twice_once_its_answer_was_written(tmp_path):
    journal, written = tmp_path / "made.journal.jsonl", []
    with Server(delay=0.02) as server:
        settings = SERVED | {"dataset_name": prompts(tmp_path, 120), "base_urls": [server.url], "concurrency": 3}
        words = command(tmp_path, **settings)

        def note():
            text = journal.read_bytes()
            kept = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()[1:]]
            written.append((len(server.asked), {answer["request"] for lot in kept for answer in lot}))

        killed = kill_at_random(words, journal, 20, random.Random(3), note)
        by_seed = {seed_of(42, number): number for number in range(360)}
        for asked, kept in written:
            assert not kept & {by_seed[seed] for _, seed in server.asked[asked:]}
        assert killed >= 18
        assert {by_seed[seed] for _, seed in server.asked} == set(range(360))
    rows = read(tmp_path / "made.jsonl")
    with Server() as healthy:
        other = tmp_path / "other"
        other.mkdir()
        done = served(other, healthy, count=120)
        assert done.returncode == 0, done.stderr
        assert sorted(healthy.tries.values()) == [1] * 360
    assert digest(other / "made.jsonl") == digest(tmp_path / "made.jsonl")
    assert all(len(row["responses"]) == 3 for row in rows)
    assert not journal.exists()


def test_ctrl_c_is_no_traceback(tmp_path):
    with Server(delay=0.05) as server:
        settings = SERVED | {"dataset_name": prompts(tmp_path, 200), "base_urls": [server.url]}
        words, journal = command(tmp_path, **settings), tmp_path / "made.journal.jsonl"
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
        assert (process.returncode, "Traceback" in errors) == (130, False), errors
        assert "Run the same command again" in errors


def test_half_a_line_is_taken_away(tmp_path):
    with Server(lambda body, tries: (500, {}) if "Question 5" in str(body) else plain(body, tries)) as server:
        done = served(tmp_path, server, max_retries=0)
        assert done.returncode == 3
    journal = tmp_path / "made.journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'[{"request": 16, "completion": [{"role"')
    with Server() as server:
        done = served(tmp_path, server, max_retries=0)
        assert done.returncode == 0, done.stderr
        assert len(server.asked) == 3
    assert all(len(row["responses"]) == 3 for row in read(tmp_path / "made.jsonl"))


GARBAGE = [
    (200, b"<html>gateway</html>", {"Content-Type": "text/html"}),
    (200, b'{"choices": [', {}),
    (200, {"choices": []}),
    (200, {"choices": [{"message": None}]}),
    (200, {"error": "overloaded"}),
    (200, [1, 2]),
    (200, b""),
    (200, completion(None)),
    (200, completion({"text": "a mapping"})),
    (200, json.dumps(completion("half")).encode()[:50], {"Content-Length": "4000"}),  # half a stream
    None,  # nothing
    (500, {"error": {"message": "out of memory"}}),
    (503, b"busy", {"Content-Type": "text/plain"}),
    (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.1"}),
    (400, {"error": {"message": "the prompt is too long"}}),
]


def test_bad_servers_are_retried_and_what_fails_is_listed(tmp_path):
    """Each prompt gets one kind of bad answer, at first always, then never."""

    def behave(body, tries):
        return GARBAGE[int(body["messages"][-1]["content"].split()[1])]

    with Server(behave) as server:
        done = served(tmp_path, server, count=len(GARBAGE), num_responses=1, timeout=0.5)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert f"{len(GARBAGE)} prompts lack {len(GARBAGE)} responses" in done.stdout
        tries = {json.loads(messages)[-1]["content"]: n for (messages, _), n in server.tries.items()}
        assert tries.pop(f"Question {len(GARBAGE) - 1}") == 1  # 400: never again
        assert set(tries.values()) == {3}
    listed = read(tmp_path / "made.failed.jsonl")
    assert [row["row"] for row in listed] == list(range(1, len(GARBAGE) + 1))
    reasons = " ".join(reason for row in listed for reason in row["reasons"])
    for text in (
        "out of memory",
        "busy",
        "slow down",
        "too long",
        "no answer in 0.5 seconds",
        "not a chat completion",
    ):
        assert text in reasons, text
    assert not (tmp_path / "made.jsonl").exists()
    with Server() as server:
        done = served(tmp_path, server, count=len(GARBAGE), num_responses=1, timeout=0.5)
        assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "made.jsonl")) == len(GARBAGE)
    assert not (tmp_path / "made.failed.jsonl").exists()


def test_what_goes_wrong_for_a_while_costs_nothing(tmp_path):
    def behave(body, tries):
        bad = [answer for answer in GARBAGE if answer and answer[0] != 400]
        return plain(body, tries) if tries > 2 else bad[(body["seed"] + tries) % len(bad)]

    with Server(behave) as server:
        done = served(tmp_path, server, count=4)
        assert done.returncode == 0, done.stdout
        assert set(server.tries.values()) == {3}
    manifest = json.loads((tmp_path / "made.manifest.json").read_text())
    assert manifest["counts"]["failed_prompts"] == 0
    assert manifest["counts"]["completion_tokens"] == 12 * 5


def test_a_rate_limit_is_honoured(tmp_path):
    times = []

    def behave(body, tries):
        times.append(time.monotonic())
        return (429, {}, {"Retry-After": "1.5"}) if len(times) == 1 else plain(body, tries)

    with Server(behave) as server:
        done = served(tmp_path, server, count=4, num_responses=1, concurrency=1)
    assert done.returncode == 0, done.stderr
    assert times[1] - times[0] >= 1.5
    assert read_retry_after({"retry-after-ms": "250"}) == 0.25
    assert 28 < read_retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 30
    assert read_retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert read_retry_after({"retry-after": "soon"}) is None
    assert read_retry_after({"retry-after": "86400"}) == 600


def test_others_do_not_wait_for_a_request_that_a_server_cannot_handle(tmp_path):
    with Server(lambda body, tries: (500, {}) if "Question 0" in str(body) else plain(body, tries)) as server:
        done = served(tmp_path, server, count=20, num_responses=1, concurrency=2)
    assert done.returncode == 3, done.stdout + done.stderr
    order = [json.loads(messages)[-1]["content"] for messages, _ in server.asked]
    assert order.count("Question 0") == 3
    assert order[-1] == "Question 0"  # its third try comes a second and a half after its first
    assert "most often: 500" in done.stdout


def test_after_the_first_answer_403_refuses_only_a_request(tmp_path):
    """As providers do that moderate prompts; also when no other request is left."""

    def behave(body, tries):
        return (403, {"error": "flagged"}) if "Question 5" in str(body["messages"]) else plain(body, tries)

    with Server(behave) as server:
        for asked in (8, 1):
            before = len(server.asked)
            done = served(tmp_path, server, count=8, num_responses=1, seed=1, concurrency=1)
            assert (done.returncode, len(server.asked) - before) == (3, asked), done.stderr
    assert [row["row"] for row in read(tmp_path / "made.failed.jsonl")] == [6]


def test_null_removes_a_field_that_a_server_refuses(tmp_path):
    extra = {"seed": None, "max_tokens": None, "max_completion_tokens": 9}
    with Server() as server:
        assert served(tmp_path, server, extra_body=extra).returncode == 0
        assert not {"seed", "max_tokens"} & set(server.bodies[0])
        assert server.bodies[0]["max_completion_tokens"] == 9


def test_two_processes_do_not_write_one_output(tmp_path):
    with Server() as server, (tmp_path / "made.journal.jsonl").open("a+b") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        done = served(tmp_path, server)
        assert (done.returncode, server.asked) == (2, [])
    assert "is being written by another process" in done.stderr


def test_a_killed_run_that_starts_over_goes_on(tmp_path):
    """Neither the older output nor one that was written just before the kill stops it."""
    with Server(lambda body, tries: (500, {}) if "Question 5" in str(body) else plain(body, tries)) as server:
        assert served(tmp_path, server, count=5).returncode == 0
        done = served(tmp_path, server, count=6, max_retries=0)
        assert (done.returncode, "was made with other settings" in done.stderr) == (2, True)
        done = served(tmp_path, server, count=6, max_retries=0, start_over=True)
        assert done.returncode == 3
    (tmp_path / "made.jsonl").unlink()  # as if killed while outputs are put in their places
    assert (tmp_path / "made.manifest.json").exists()
    with Server() as server:
        done = served(tmp_path, server, count=6)
        assert (done.returncode, len(server.asked)) == (0, 3), done.stderr


def test_another_replica_answers_for_a_dead_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with Server() as one, Server() as two:
        done = served(tmp_path, one, two, base_urls=[one.url, dead, two.url], count=30, max_retries=4)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "does not list its models" in done.stdout
        assert min(len(one.asked), len(two.asked)) >= 20
        assert one.most <= 12


def test_a_rate_limited_server_answers_everything(tmp_path):
    """Four requests a second are let through, and the others have to wait: they are few, and none is lost."""
    times = []

    def behave(body, tries):
        now = time.monotonic()
        if sum(now - moment < 1 for moment in times[-4:]) >= 4:
            return 429, {}, {"Retry-After": "1"}
        times.append(now)
        return plain(body, tries)

    with Server(behave) as server:
        done = served(tmp_path, server, count=40, num_responses=1, concurrency=32, max_retries=6)
        assert done.returncode == 0, done.stdout
        assert len(server.asked) < 120


def test_a_silent_replica_delays_little(tmp_path):
    with Server(lambda body, tries: None) as silent, Server() as healthy:
        began = time.monotonic()
        done = served(tmp_path, silent, healthy, count=100, timeout=1.0, concurrency=4)
        assert done.returncode == 0, done.stdout
        assert len(silent.asked) < 15
        assert time.monotonic() - began < 25


def test_requests_in_flight_at_each_server(tmp_path):
    with Server(delay=0.2) as slow, Server() as quick:
        assert served(tmp_path, slow, quick, count=60, num_responses=1, concurrency=4).returncode == 0
        assert (slow.most, quick.most <= 4) == (4, True)


def test_refusals_do_not_end_a_run(tmp_path):
    """One in four prompts is too long for the server; killed, it still requests the rest."""

    def behave(body, tries):
        number = int(body["messages"][-1]["content"].split()[1])
        return (400, {"error": "too long"}) if number % 4 == 0 else plain(body, tries)

    settings = SERVED | {"dataset_name": prompts(tmp_path, 200), "num_responses": 1, "give_up_after": 20}
    with Server(behave, delay=0.01) as server:
        words = command(tmp_path, **settings, base_urls=[server.url])
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while len(server.asked) < 150:
            time.sleep(0.01)
        process.kill()
        process.wait()
        done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert (done.returncode, "50 prompts lack 50 responses" in done.stdout) == (3, True), done.stdout


def test_a_dead_server_is_given_up(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    began = time.monotonic()
    settings = SERVED | {"max_retries": 0, "give_up_after": 5, "base_urls": [dead]}
    done = generate(tmp_path, **settings, dataset_name=prompts(tmp_path, 400))
    assert done.returncode == 3
    assert time.monotonic() - began < 60
    reasons = [reason for row in read(tmp_path / "made.failed.jsonl") for reason in row["reasons"]]
    assert len([reason for reason in reasons if reason.startswith("not sent")]) > 380


def test_a_server_that_died_is_given_up_by_all_that_wait():
    """Not by each in turn: a request waits for as many failures as it would have tries itself."""

    async def run():
        config = ServerConfig(base_urls=["http://127.0.0.1:9/v1"], max_retries=3, give_up_after=40, concurrency=16)
        return await Servers(config, "m").ask_all(
            range(200), lambda servers, n: servers.ask(n, {"messages": []}), print
        )

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_py, "PAUSE", 0.01)
        patch.setattr(server_py, "LONGEST_PAUSE", 0.1)
        failed = asyncio.run(run())
    assert len(failed) == 200
    assert sum("not sent" in why for _, why in failed) >= 120
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_name_stops_at_once(tmp_path, status):
    with Server(lambda body, tries: (status, {"error": {"message": "no"}})) as server:
        done = served(tmp_path, server, count=50)
        assert len(server.asked) <= 8
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("refuses the key" if status < 404 else "does not know m") in done.stderr


def test_a_model_that_the_server_does_not_list_is_reported(tmp_path):
    """And used all the same: some answer to names that they do not list. A missing one is a 404."""
    with Server(models=("big", "small")) as server:
        done = served(tmp_path, server)
    assert (done.returncode, "does not list m, but big, small" in done.stdout) == (0, True)


def test_the_key_is_taken_from_the_environment_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-verysecretkey")
    with Server() as server:
        done = served(tmp_path, server, api_key_variable="MY_KEY")
        assert server.bodies[0]["_headers"]["authorization"] == "Bearer sk-verysecretkey"
    assert done.returncode == 0, done.stderr
    for path in tmp_path.iterdir():
        assert "verysecret" not in path.read_text()
    done = served(tmp_path, server, api_key="sk-verysecretkey")
    assert (done.returncode, "unknown key" in done.stderr) == (2, True)


def test_the_request_has_the_settings(tmp_path):
    body = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1, "max_tokens": 9}
    with Server() as server:
        done = served(
            tmp_path, server, count=1, num_responses=2, top_k=20, extra_body={"min_p": 0.1}, max_new_tokens=9,
            chat_template_kwargs={"enable_thinking": False}, system_prompt="Be kind.", temperature=0.7,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for key, value in body.items():
            assert server.bodies[0][key] == value
        assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be kind."}
        assert server.bodies[0]["seed"] != server.bodies[1]["seed"]
    assert read(tmp_path / "made.jsonl")[0]["prompt"][0]["role"] == "system"


def test_the_system_prompt_can_be_left_out_of_the_rows(tmp_path):
    with Server() as server:
        done = served(tmp_path, server, system_prompt="Be kind.", keep_system_prompt=False)
        assert done.returncode == 0, done.stderr
        assert server.bodies[0]["messages"][0]["role"] == "system"
    assert all(row["prompt"][0]["role"] == "user" for row in read(tmp_path / "made.jsonl"))


def test_tools_are_called_between_the_turns(tmp_path):
    def behave(body, tries):
        last = body["messages"][-1]
        if last["role"] == "tool":
            assert last["tool_call_id"] == "call_1"
            return 200, completion(f"The answer is {last['content']}.")
        function = {"name": "calculator", "arguments": '{"expression": "2 + 3"}'}
        calls = [{"id": "call_1", "type": "function", "function": function}]
        return 200, completion(None, tool_calls=calls, reasoning="I need it.")

    with Server(behave) as server:
        done = served(tmp_path, server, count=2, num_responses=1, tools=["calculator"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.bodies[-1]["messages"][1]["reasoning"] == "I need it."  # back in the field in which it came
        assert server.bodies[0]["tools"][0]["function"]["name"] == "calculator"
    for row in read(tmp_path / "made.jsonl"):
        assert json.loads(row["tools"])[0]["function"]["name"] == "calculator"
        call, result, answer = row["responses"][0]["completion"]
        assert call["tool_calls"][0]["function"] == {"name": "calculator", "arguments": {"expression": "2 + 3"}}
        assert (result["role"], result["content"]) == ("tool", "5")
        assert answer["content"] == "The answer is 5."
        assert row["responses"][0]["completion_tokens"] == 10


def test_responses_that_are_all_alike_are_reported(tmp_path):
    with Server(lambda body, tries: (200, completion("the same"))) as server:
        done = served(tmp_path, server)
    assert done.returncode == 0
    assert "6 of 6 prompts got the same response every time" in done.stdout


def test_results_go_back_by_their_calls():
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": {"x": name}}} for name in "ab"]
    results = [{"role": "tool", "name": "f", "content": "1"}, {"role": "tool", "name": "f", "content": "2"}]
    first, *results = to_api_messages([{"role": "assistant", "content": None, "tool_calls": calls}, *results])
    assert [message["tool_call_id"] for message in results] == ["a", "b"]
    assert (first["content"], first["tool_calls"][0]["function"]["arguments"]) == ("", '{"x": "a"}')


def test_the_prompt_of_a_tool_dialogue_ends_with_its_last_question(tmp_path):
    """Earlier calls are sent as the API takes them; those after the last question are left to the model."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    user, calls = {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}
    turns = [user, calls, {"role": "tool", "name": "f", "content": "7"}, {"role": "assistant", "content": "Seven."}]
    row = {"messages": [*turns, *turns], "id": 1}
    assert to_prompt_row(row) == {"prompt": [*turns, user], "answer": "Seven.", "id": 1}
    assert to_prompt_row({"chosen": turns, "rejected": [user, *turns[:3], turns[3] | {"content": "No."}]}) == {
        "prompt": [user], "answer": "Seven."
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with Server() as server:
        done = served(tmp_path, server, dataset_name=str(tmp_path / "rows.jsonl"))
        assert done.returncode == 0, done.stderr
        _, sent, result, *_ = server.bodies[0]["messages"]
    assert sent["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert result["tool_call_id"] == sent["tool_calls"][0]["id"]
    assert read(tmp_path / "made.jsonl")[0]["prompt"] == [*turns, user]


def test_a_replica_may_be_away_for_days():
    replica = Replica("http://a/v1", None, room=4.0, failures=5000)
    assert replica.failed(None) and replica.failures == 5001
    assert 0 < replica.free_at - time.monotonic() <= 1.1 * server_py.LONGEST_PAUSE


@pytest.mark.parametrize(
    ("content", "reasoning", "keep", "wanted"),
    [
        ("4", "2 + 2", True, "<think>\n2 + 2\n</think>\n\n4"),
        ("4", "2 + 2", False, "4"),
        ("<think>\n2 + 2\n</think>\n\n4", "", True, "<think>\n2 + 2\n</think>\n\n4"),
        ("<think>\n2 + 2\n</think>\n\n4", "", False, "4"),
        ("2 + 2\n</think>\n\n4", "", True, "<think>\n2 + 2\n</think>\n\n4"),  # the template opened it
        ("<think>\n\n</think>\n\n4", "", True, "4"),
        ("<think>\n2 +", "", True, "<think>\n2 +"),
        ("<think>\n2 +", "", False, ""),
        ("<think>", "", False, ""),
        ("4", "", True, "4"),
    ],
)
def test_thinking_is_kept_or_dropped(content, reasoning, keep, wanted):
    assert message_of(content, reasoning, [], keep_thinking=keep) == {"role": "assistant", "content": wanted}


def test_answers_are_read_or_refused():
    body = completion("x", reasoning="why") | {"usage": None}
    assert read_answer(json.dumps(body))["reasoning"] == "why"
    assert read_answer(json.dumps(body))["completion_tokens"] is None
    assert read_answer(json.dumps(completion("")))["content"] == ""  # an empty answer is an answer
    assert read_answer(json.dumps(completion(None, refusal="I will not.")))["content"] == "I will not."
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "4"}]
    found = read_answer(json.dumps(completion(parts) | {"usage": [1]}))
    assert (found["content"], found["reasoning"], found["prompt_tokens"]) == ("4", "hm", None)
    for given, wanted in (("model_length", "length"), ("end_turn", "stop"), (None, "stop"), ("content_filter",) * 2):
        body = completion("x")
        body["choices"][0]["finish_reason"] = given
        assert read_answer(json.dumps(body))["finish_reason"] == wanted
        body["choices"][0]["message"]["content"] = None
        if wanted != "stop":  # cut off before its first word: not garbage, but not a whole answer either
            assert read_answer(json.dumps(body))["content"] == ""
    for text in ("", "null", "[]", '{"choices": [{}]}', json.dumps(completion(None)), "[" * 100_000):
        with pytest.raises(Unreadable):
            read_answer(text)


def test_rows_in_every_format_become_prompts():
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    assert to_prompt_row({"question": "q", "answer": "#### 1"}) == {"prompt": [user], "answer": "#### 1"}
    assert to_prompt_row({"messages": [user, assistant], "id": 3}) == {"prompt": [user], "answer": "a", "id": 3}
    assert to_prompt_row({"prompt": [user], "chosen": [assistant], "rejected": []}) == {
        "prompt": [user],
        "answer": "a",
    }
    assert to_prompt_row({"prompt": "q", "completion": "a", "answer": "1"}) == {"prompt": "q", "answer": "1"}
    assert to_prompt_row({"messages": [user, assistant, user]}) == {"prompt": [user], "answer": "a"}
    assert to_prompt_row({"prompt": "q", "completion": "a", "messages": None, "text": None})["answer"] == "a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_respones": 3}, "did you mean num_responses?"),
        ({"num_responses": 0}, "out of range"),
        ({"thinking": "maybe"}, "not a choice"),
        ({"temperature": 0}, "the same response every time"),
        ({"model_name_or_path": "outputs/nowhere/x"}, "there is no"),
        ({"dataset_name": "nowhere.jsonl"}, "there is no file"),
        ({"backend": "vllm"}, "vLLM is not installed"),
        ({"tools": ["nothing"]}, "is not a tool"),
        ({"output_file": None}, "has no value"),
        ({"output_file": "/dev/null/x.jsonl"}, "cannot be written"),
        ({"output_file": "made.txt"}, "must end with .jsonl"),
        ({"output_file": "tiny/data/grpo.jsonl"}, "is also an input"),
        ({"base_urls": ["localhost:8000/v1"]}, "is not an address; for example http://"),
        ({"base_urls": ["http://[::1/v1"]}, "is not an address"),
    ],
)
def test_a_users_mistake_is_one_message(tmp_path, settings, message):
    done = generate(tmp_path, **(LOCAL | settings))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": ""}', "does not end with a question"),
        ('{"text": "no question"}', "row 2: its prompt is None"),
        ('{"prompt": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}', "a text as content"),
        ('{"prompt": "x", "tools": "{"}', "row 2: a column cannot be written"),
        ('{"prompt": "x", "tools": {"a": 1}}', "row 2: its tools are"),
        ("not json", "prompts.jsonl:2: is not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "row 2: to_prompt_row cannot read it"),
    ],
)
def test_a_bad_prompt_is_named(tmp_path, row, message):
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "fine"}}\n{row}\n')
    done = generate(tmp_path, **SERVED, base_urls=["http://127.0.0.1:9/v1"], dataset_name=f"{tmp_path}/prompts.jsonl")
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_prompts_without_room_are_listed(tmp_path):
    long = [{"prompt": "short"}, {"prompt": "word " * 3000}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    done = generate(tmp_path, **(LOCAL | {"dataset_name": str(tmp_path / "p.jsonl"), "num_responses": 2}))
    assert done.returncode == 3, done.stdout + done.stderr
    assert [row["row"] for row in read(tmp_path / "made.failed.jsonl")] == [2]
    assert len(read(tmp_path / "made.jsonl")) == 1


def test_a_dry_run_sends_nothing(tmp_path):
    with Server() as server:
        prices = {"input_price": 1.0, "output_price": 2.0, "max_new_tokens": 1000, "dry_run": True}
        done = served(tmp_path, server, count=10, **prices)
        assert (done.returncode, server.asked) == (0, [])
    assert "10 prompts x 3 = 30 responses" in done.stdout
    assert "at most 30,000 response tokens" in done.stdout
    assert "costs at most about 0.06" in done.stdout
    assert not (tmp_path / "made.jsonl").exists()


def test_the_cost_is_counted(tmp_path):
    with Server() as server:
        done = served(tmp_path, server, count=10, input_price=1000.0, output_price=2000.0)
    assert done.returncode == 0
    counts = json.loads((tmp_path / "made.manifest.json").read_text())["counts"]
    assert counts["cost"] == pytest.approx((30 * 7 * 1000 + 30 * 5 * 2000) / 1e6)


@pytest.mark.slow  # on a CPU it is slow itself
def test_continuous_batching_gives_what_batches_give():
    """Greedy, the two engines give the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny/base")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny/base").eval()
    settings = SimpleNamespace(temperature=0, top_p=1.0, top_k=None, max_new_tokens=12, batch_size=4)
    asked = [tokenizer(text)["input_ids"] for text in ("Tom has 3 apples. He", "7 + 5 =", "Mia buys 2")]
    stops = [tokenizer.eos_token_id]
    made = [transformers_engine(model, tokenizer, settings, stops, batches=b)(asked, 0) for b in (True, False)]
    assert made[0] == made[1]


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory):
    """`transformers serve` on the loopback interface, with the tiny base and a chat template."""
    folder = tmp_path_factory.mktemp("served") / "base"
    shutil.copytree(ROOT / "tiny/base", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = read_template("qwen3")
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", str(folder), "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*words, "--device", "cpu", "--host", "127.0.0.1"], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        yield {"base_urls": [f"http://127.0.0.1:{port}/v1"], "model_name_or_path": str(folder), "concurrency": 3}
    finally:
        process.terminate()
        process.wait(20)


def test_a_real_server_gives_what_the_model_in_this_process_gives(transformers_server, tmp_path):
    """Greedy, word for word; then sampled, through the rest of the pipeline."""
    settings = LOCAL | {"num_responses": 1, "temperature": 0, "max_new_tokens": 12, "prompts": 6}
    (tmp_path / "local").mkdir()
    done = generate(tmp_path / "local", **settings)
    assert done.returncode == 0, done.stderr
    done = generate(tmp_path, **(settings | transformers_server))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path / "made.jsonl") == read(tmp_path / "local/made.jsonl")


def test_what_a_real_server_samples_goes_through_the_rest(transformers_server, tmp_path):
    sampled = '{"do_sample": true, "top_k": 0, "eos_token_id": [761, 759], "pad_token_id": 759}'
    settings = LOCAL | transformers_server | {"extra_body": {"generation_config": sampled}}
    done = generate(tmp_path, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same response every time" not in done.stdout
    rows = read(tmp_path / "made.jsonl")
    assert all(len(row["responses"]) == 3 for row in rows)
    words = [sys.executable, "data_prep/best_of_k.py", "--config", "configs/best_of_k_tiny.yaml", "--dataset_name"]
    words += [tmp_path / "made.jsonl", "--least_score", "0", "--keep_truncated", "--best_to", tmp_path / "best.jsonl"]
    words += ["--pairs_to", "null", "--prompts_to", "null"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "best.jsonl")) == 12
