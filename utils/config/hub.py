"""What a config needs from the hub: is it cached, or does the hub answer? Known in seconds, before anything loads."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from utils.config.legacy_keys import what_to_write
from utils.config.source import ROOT, Source, UserError, local_path


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: hub names have at most one slash, no suffix of data files, no leading dot."""
    return (
        name.count("/") > 1
        or name.startswith((".", "/", "~", "outputs/", "tiny/"))
        or Path(name).suffix in {".jsonl", ".json", ".parquet", ".csv", ".jinja"}
    )


def missing_model(source: Source, name: object) -> str | None:
    """What is wrong with a model whose name can only be a path, if nothing is there; else None."""
    if not isinstance(name, str) or not looks_local(name) or local_path(source, "model_name_or_path", name):
        return None
    base = Path.cwd() if source.where["model_name_or_path"] == "command line" else ROOT
    run = Path(name).parent if Path(name).name.startswith("checkpoint-") else Path(name)
    made_by = ROOT / "configs" / f"{run.name}.yaml"
    header = made_by.read_text(encoding="utf-8").splitlines() if made_by.exists() else []
    commands = [
        line.strip("# ") for line in header if line.startswith("#") and f"--config configs/{made_by.name}" in line
    ]
    if not commands:
        return f"there is no {base / name}. Write the path of a model's folder"
    return f"there is no {base / name}. Create it with: {commands[0]}"


def hub_names(source: Source) -> list[tuple[str, str, str]]:
    """(key, name, kind) of everything in the config that must come from the hub."""
    wanted = []
    if not source.values.get("base_urls"):  # else a server has the model
        wanted = [("model_name_or_path", source.values.get("model_name_or_path"), "model")]
    wanted += [(key, source.values.get(key), "dataset") for key in ("dataset_name", "heldout_name")]
    mixture = source.values.get("datasets")
    for part in mixture if isinstance(mixture, list) else []:
        if isinstance(part, dict) and not str(part.get("data_files", "")):
            wanted.append(("datasets", part.get("path"), "dataset"))
    return [
        (key, name, kind)
        for key, name, kind in wanted
        if isinstance(name, str) and local_path(source, key, name) is None and not looks_local(name)
    ]


def require_hub(source: Source) -> None:
    """Stop at once, instead of after minutes of retries, if something must come from the hub and cannot.

    If the hub does not answer and everything is cached, the libraries are set to work offline.
    """
    wanted = hub_names(source)
    if not wanted or source.mistakes:  # parse_config reports all mistakes at once
        return
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        cache = Path(constants.HF_HUB_CACHE)
        missing = [
            f"{source.where[key]}: {key}: the {kind} {name} is not on this machine"
            for key, name, kind in wanted
            if not (cache / repo_folder_name(repo_id=name, repo_type=kind) / "snapshots").exists()
        ]
        if any(what_to_write(key, value) for key, value in source.values.items()):
            source.mistakes += missing  # reported together with the older keys, if the method has none of that name
        elif missing:
            missing.append(f"and {constants.ENDPOINT} cannot be reached: {error}.")
            missing.append("Connect, or name a local folder or file. Without a network, this runs as it is:")
            tiny = f"{source.name.split('_')[0]}_tiny.yaml"
            tiny = tiny if (ROOT / "configs" / tiny).exists() else "sft_tiny.yaml"
            missing.append(f"  --config configs/{tiny}")
            raise UserError("\n".join(missing)) from None
