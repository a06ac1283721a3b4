"""Settings: which place goes before which, and what is refused in each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hugepool_common import settings
from hugepool_common.errors import InvalidSpecError
from hugepool_common.settings import (
    CONFIG_VARIABLE,
    DEFAULT,
    FLAG,
    NAMES,
    Settings,
    read_configuration,
    read_settings,
    suspect_variables,
    variable_of,
)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's file and a user's file of the test's own, neither there yet; no variables."""
    for name in list(os.environ):
        if name.startswith("HUGEPOOL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "SYSTEM_FILE", str(tmp_path / "etc.toml"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "hugepool").mkdir()


def users_file(tmp_path: Path) -> Path:
    return tmp_path / "hugepool" / "hugepool.toml"


def test_nothing_set_is_the_default() -> None:
    found = read_configuration()
    assert found.settings == Settings()
    assert set(found.origins) == set(NAMES) and set(found.origins.values()) == {DEFAULT}


def test_each_place_goes_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, user = tmp_path / "etc.toml", users_file(tmp_path)
    machine.write_text('quota = "1G"\nkeep = true\nmount = "/machine"\ngroup = "machine"\n')
    user.write_text('quota = "2G"\nmount = "/user"\ngroup = "user"\n')
    monkeypatch.setenv("HUGEPOOL_QUOTA", "3G")
    monkeypatch.setenv("HUGEPOOL_MOUNT", "/variable")
    found = read_configuration({"quota": "4G", "keep": None})
    assert found.settings == Settings(quota="4G", mount="/variable", group="user", keep=True)
    assert {name: found.origins[name] for name in ("quota", "mount", "group", "keep")} == {
        "quota": FLAG,
        "mount": "HUGEPOOL_MOUNT",
        "group": str(user),
        "keep": str(machine),
    }
    assert read_configuration({"keep": False}).settings.keep is False


def test_a_chosen_file_stands_in_place_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users_file(tmp_path).write_text('quota = "2G"\n')
    chosen = tmp_path / "chosen.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(chosen))
    with pytest.raises(InvalidSpecError, match="cannot be read: No such file") as caught:
        read_settings()
    assert caught.value.where == str(chosen)
    chosen.write_text("reconnect_s = 3\n")
    assert read_settings() == Settings(reconnect_s=3.0)


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ('runtme_dir = "/x"', "'runtme_dir' is not a setting", "did you mean runtime_dir?"),
        ('quota-per-user = "1G"', "'quota-per-user' is not a setting", "quota_per_user"),
        ("[server]\nkeep = true", "'server' is not a setting", "settings are address, "),
        ("keep = 1", "keep cannot be 1", ""),
        ('keep = "true"', "keep cannot be 'true'", ""),
        ("quota = 100", "quota cannot be 100", ""),
        ('quota = "lots"', "quota cannot be 'lots'", ""),
        ('quota_per_user = "0"', "quota_per_user cannot be '0'", ""),
        ('page_size = "3M"', "page_size cannot be '3M'", ""),
        ("reconnect_s = -1", "reconnect_s cannot be -1", ""),
        ("reconnect_s = inf", "reconnect_s cannot be inf", ""),
        ("keep = ", "is no TOML", ""),
        ("keep = true\nkeep = true", "is no TOML", ""),
    ],
)
def test_a_file_is_refused_by_name_and_place(
    tmp_path: Path, text: str, words: str, remedy: str
) -> None:
    users_file(tmp_path).write_text(text)
    with pytest.raises(InvalidSpecError, match=words) as caught:
        read_settings()
    assert caught.value.where == str(users_file(tmp_path))
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    users_file(tmp_path).write_bytes(b"\xff\xfe\0")
    with pytest.raises(InvalidSpecError, match="is no TOML"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep", "1", True),
        ("keep", "false", False),
        ("reconnect_s", "2.5", 2.5),
        ("reconnect_s", "0", 0.0),
        ("lease_s", "1", 1.0),
        ("tcp", "127.0.0.1:0", "127.0.0.1:0"),
        ("log_level", "debug", "debug"),
        ("address", "ipc:///x", "ipc:///x"),
        ("quota", "", ""),
    ],
)
def test_variables_are_text(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(variable_of(name), text)
    assert getattr(read_settings(), name) == value


@pytest.mark.parametrize(
    ("name", "text", "needed"),
    [
        ("keep", "yes", "true or false"),
        ("huge_pages", "maybe", "try or on or off"),
        ("log_level", "loud", "debug or info or warning or error"),
        ("quota", "much", 'a number of bytes such as "100G"'),
        *(("reconnect_s", text, "seconds, 0 or more") for text in ("soon", "-1", "nan", "inf")),
        *(("lease_s", text, "seconds, 1 to 3600") for text in ("soon", "0.9", "nan", "3601")),
    ],
)
def test_a_variable_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, needed: str
) -> None:
    monkeypatch.setenv(variable_of(name), text)
    with pytest.raises(InvalidSpecError) as caught:
        read_settings()
    assert (caught.value.where, caught.value.needed) == (variable_of(name), needed)


def test_variables_that_were_there_before_keep_their_names() -> None:
    assert variable_of("log_level") == "HUGEPOOL_LOG"
    assert variable_of("runtime_dir") == "HUGEPOOL_RUNTIME_DIR"


def test_variables_with_a_typo_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPOOL_ADRESS", "ipc:///x")
    monkeypatch.setenv("HUGEPOOL_PROGRAM", "of another kind")
    assert suspect_variables() == {"HUGEPOOL_ADRESS": "HUGEPOOL_ADDRESS"}
    with pytest.raises(InvalidSpecError, match="did you mean HUGEPOOL_ADDRESS"):
        read_settings()
    monkeypatch.delenv("HUGEPOOL_ADRESS")
    monkeypatch.setenv("HUGEPOOL_LOG_LEVEL", "debug")
    assert suspect_variables() == {"HUGEPOOL_LOG_LEVEL": "HUGEPOOL_LOG"}
    monkeypatch.delenv("HUGEPOOL_LOG_LEVEL")
    for others in ("HUGEPOOL_REQUIRE", "HUGEPOOL_PORT_8377_TCP_ADDR", "HUGEPOOL_SERVICE_HOST"):
        monkeypatch.setenv(others, "1")  # of our tests; of Kubernetes beside a service of this name
    assert suspect_variables() == {}


def test_what_is_set_for_the_service_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPOOL_KEEP", "1")
    monkeypatch.setenv("HUGEPOOL_MOUNT", "/x")
    found = read_configuration({"quota": "1G"})
    assert found.by_flag_alone("keep", "quota") == Settings(quota="1G", mount="/x")
