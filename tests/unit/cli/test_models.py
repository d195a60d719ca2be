"""Where the base model is, and what it is called."""

from pathlib import Path

import pytest

from anole_cli.models import is_hub_id, model_dir, resolved
from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "My-Model"
    found.mkdir()
    (found / "config.json").write_text("{}")
    return found


def test_a_folder_is_called_by_its_own_name(folder: Path) -> None:
    settings = resolved(CommonSettings(model=str(folder)))
    assert (settings.model, settings.model_name) == (str(folder), "My-Model")


def test_a_given_name_wins(folder: Path) -> None:
    settings = resolved(CommonSettings(model=str(folder), model_name="base"))
    assert settings.model_name == "base"


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no config\.json"):
        model_dir(CommonSettings(model=str(tmp_path)))


def test_only_owner_and_name_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("owner/name")
    assert not is_hub_id(None)
    for path in ("/etc/model", "../model", "a/b/c", "name"):
        assert not is_hub_id(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")
