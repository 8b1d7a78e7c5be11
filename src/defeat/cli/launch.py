"""How every console script starts: Hydra around a task, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from defeat.cli.messages import explain
from defeat.config import conf_dir
from defeat.errors import ConfigError, DefeatError

MISSING = {
    "data.root": "the folder of the data set",
    "teacher.weights": "a checkpoint of the trained teacher, such as best.ckpt of its run",
    "student.backbone_weights": "ImageNet weights of the backbone: a file or a torchvision enum",
}
"""What to write where a value that only the user knows is not set."""


def launch(task: Callable[[DictConfig], object], config_name: str) -> None:
    """Compose ``config_name`` with the command line and run ``task`` on it, under Hydra.

    Errors that the user can mend end the process with status 1 and one line on standard error; with
    ``hydra.verbose=true`` or HYDRA_FULL_ERROR=1 their traceback is shown. Any other error is a defect of the
    program and keeps its traceback.
    """
    verbose = "HYDRA_FULL_ERROR" in os.environ or any("hydra.verbose" in word for word in sys.argv[1:])
    # Hydra would print its own cut-down traceback and exit; told so, it lets the error through.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def checked(config: DictConfig) -> object:
        _require(config)
        return task(config)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(checked)()
    except (DefeatError, HydraException, OmegaConfBaseException) as error:
        if verbose:
            raise
        print(f"error: {explain(error, config_name, sys.argv[1:])}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _require(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        wanted = "; ".join(f"add {key}=<{MISSING.get(key, 'a value')}>" for key in missing)
        raise ConfigError(f"{', '.join(missing)} not set: {wanted}")
