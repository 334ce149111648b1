"""The examples of the guides: their syntax, and that the commands in them are ones that spanbox takes."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from spanbox.ablation import AblationPlan, load_plan
from spanbox.config import load_config

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
OVERRIDE = re.compile(r"\b((?:data|model|train|run)\.[\w.]+=\S+)")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_kubernetes_job_is_yaml_with_a_bash_script() -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    subprocess.run(["bash", "-n"], input=container["args"][0], text=True, check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_every_setting_is_known(name: str) -> None:
    settings = OVERRIDE.findall((EXAMPLES / name).read_text(encoding="utf-8"))
    assert len(settings) == 6
    load_config("gmner", [setting.replace('"', "") for setting in settings])


def test_the_plan_of_the_guide_is_right_and_every_key_is_described(tmp_path: Path) -> None:
    guide = (EXAMPLES.parent / "ablation.md").read_text(encoding="utf-8")
    (plan,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    assert len(load_plan(tmp_path / "plan.yaml").variants) == 3
    described = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", guide, re.MULTILINE)))
    assert set(described) == set(AblationPlan.model_fields)
