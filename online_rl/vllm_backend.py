"""Generation backends of online RL: transformers needs nothing; vLLM is looked at before minutes are spent on it."""

import json
import time
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from urllib.request import urlopen

import torch
from packaging.version import Version

from utils.config import Config, UserError
from utils.files import say

SUPPORTED = ("0.22.0", "0.31.0")  # what TRL 1.16 says it works with (trl/import_utils.py)
PATIENCE = 5  # seconds for one answer of a server


def check_backend(config: Config) -> None:
    """Whether vLLM can be used as the config asks: installed in a version that TRL takes, and beside a GPU or served.

    Raises UserError with what to do; a server that does not answer is waited for, for vllm_server_timeout seconds.
    """
    if not config.training.use_vllm:
        return
    try:
        check_version("vLLM", version("vllm"))
    except PackageNotFoundError:
        raise UserError(
            "use_vllm: vLLM is not installed. Install it with: pip install -r requirements-gpu.txt, "
            "or write use_vllm: false"
        ) from None
    if config.training.vllm_mode == "server":
        check_server(config)
    elif not torch.accelerator.is_available():
        raise UserError("use_vllm: vLLM in the training process needs a GPU, and there is none. Write use_vllm: false")


def check_version(who: str, found: str) -> None:
    low, high = SUPPORTED
    if not Version(low) <= Version(Version(found).base_version) <= Version(high):
        raise UserError(
            f"use_vllm: {who} is version {found}, and TRL works with {low} to {high}. Install the version of "
            "requirements-gpu.txt"
        )


def check_server(config: Config) -> None:
    """Is it up, of a version that TRL takes, able to take new weights, and serving the model that is trained?"""
    training = config.training
    where = training.vllm_server_base_url or f"http://{training.vllm_server_host}:{training.vllm_server_port}"
    where = where.rstrip("/")
    name = config.given["model_name_or_path"]
    command = (
        f'VLLM_SERVER_DEV_MODE=1 vllm serve {name} --weight-transfer-config \'{{"backend": "nccl"}}\' '
        "--logprobs-mode processed_logprobs"
    )
    wait_for(where, training.vllm_server_timeout, command)
    try:
        number = query(f"{where}/version", command)["version"]
        transfer = query(f"{where}/server_info?config_format=json", command)["vllm_config"]["weight_transfer_config"]
        served = query(f"{where}/v1/models", command)["data"][0]
        serves, context = served["id"].rstrip("/").split("/")[-1], int(served["max_model_len"])
        Version(number)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"vllm_mode: what listens at {where} is not a vLLM server ({type(error).__name__}: {error}). "
            f"Start one with: {command}"
        ) from None
    check_version(f"the server at {where}", number)
    if transfer is None:
        raise UserError(f"vllm_mode: the server at {where} does not accept new weights. Start it with: {command}")
    if serves != name.rstrip("/").split("/")[-1]:
        raise UserError(
            f"vllm_mode: the server at {where} serves {served['id']}, but {name} is trained. Start it with: {command}"
        )
    if context <= training.max_completion_length:
        raise UserError(
            f"max_completion_length: the server at {where} has a context of {context}, which leaves no room for a "
            "prompt. Lower max_completion_length, or serve with a greater --max-model-len"
        )


def wait_for(where: str, seconds: float, command: str) -> None:
    """Until the server is up. TRL asks without a time limit, and a server that says nothing would hold it."""
    end, reported = time.monotonic() + seconds, False
    while True:
        try:
            urlopen(f"{where}/health", timeout=PATIENCE).close()
            return
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        if time.monotonic() >= end:
            raise UserError(
                f"vllm_mode: no vLLM server answers at {where} after {seconds:g} s ({reason}). "
                f"Start it with: {command}"
            )
        if not reported:
            say("waiting", f"for the vLLM server at {where}, up to {seconds:g} s")
            reported = True
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def query(url: str, command: str) -> dict:
    """A server's answer. Raises UserError if it has none: then it lacks what TRL needs, or is not a vLLM server."""
    try:
        with urlopen(url, timeout=PATIENCE) as response:
            return json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"vllm_mode: {url} does not answer as vLLM does ({reason}). Start it with: {command}"
        ) from None
