"""The self-test passes on a sound installation and recognises an unsound one."""

import jax
import pytest

from jaxdfl import doctor


def test_this_installation_computes_correctly():
    doctor.check_numerics()


@pytest.mark.parametrize("damage", [2.0, float("nan")])
def test_one_wrong_row_is_found_and_the_remedy_said(monkeypatch, damage):
    sound = doctor._squared_norms
    monkeypatch.setattr(doctor, "_squared_norms", lambda matrix, rows: sound(matrix, rows).at[-1].add(damage))
    with pytest.raises(doctor.NumericsError, match="1 of 32769 rows are wrong") as caught:
        doctor.check_numerics()
    assert str(caught.value).startswith(f"jax {jax.__version__} miscompiles")
    assert str(caught.value).endswith(f"pip install 'jax!={jax.__version__}'")


def test_report_names_versions_and_devices_and_exits_with_0(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    for expected in ("transformers", jax.__version__, jax.devices()[0].device_kind, "cores", "passed"):
        assert expected in printed


def test_report_exits_with_1_where_the_self_test_fails(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_squared_norms", lambda matrix, rows: 0 * rows[:, 0])
    assert doctor.main() == 1
    assert "FAILED" in capsys.readouterr().out
