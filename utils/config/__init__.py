"""A YAML file and command-line flags in, a checked Config out; every mistake at once, with file, line and fix.

Every train.py and every script of data_prep/ begins here, before the slow libraries are imported. No field of TRL is
mirrored: TRL's own dataclasses are checked against. It never loads a model or a data set, and knows no method: what a
method adds to the config is a subclass of RecipeConfig in the method's folder.
"""

from utils.config.earlier import earlier_state
from utils.config.fields import FREE_TO_CHANGE, FREE_UNTIL_DONE, InputFile, OutputFile, RecipeConfig
from utils.config.findings import Findings
from utils.config.hub import missing_model
from utils.config.imports import choose, describe_error, import_dotted
from utils.config.json_schema import json_schema
from utils.config.parse import Config, parse_config
from utils.config.read import as_user_error, read_config, run_main
from utils.config.schema import parse_fields
from utils.config.source import ROOT, Source, UserError, local_path

__all__ = [
    "FREE_TO_CHANGE", "FREE_UNTIL_DONE", "ROOT", "Config", "Findings", "InputFile", "OutputFile",
    "RecipeConfig", "Source", "UserError", "as_user_error", "choose", "describe_error", "earlier_state",
    "import_dotted", "json_schema", "local_path", "missing_model", "parse_config", "parse_fields", "read_config",
    "run_main",
]  # fmt: skip
