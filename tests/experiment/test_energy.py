"""Energy is what the counters of the packages grew by, and missing where that is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftbench.run import energy

CPU = torch.device("cpu")


def domain(root: Path, name: str, called: str, microjoules: int, span: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{called}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_joules_are_of_all_packages_and_each_counts_once(powercap: Path) -> None:
    packages = [domain(powercap, f"intel-rapl:{i}", f"package-{i}", 1000) for i in (0, 1)]
    within = domain(powercap, "intel-rapl:0:0", "core", 1000)
    platform = domain(powercap, "intel-rapl:2", "psys", 1000)
    meter = energy.EnergyMeter(CPU)
    for file in (*packages, within, platform):
        file.write_text("3001000\n")
    assert meter.joules() == pytest.approx(2 * 3.0)
    packages[0].write_text("4001000\n")
    assert meter.joules() == pytest.approx(2 * 3.0 + 1.0)


def test_a_counter_that_began_again_goes_on(powercap: Path) -> None:
    file = domain(powercap, "intel-rapl:0", "package-0", 999_000_000)
    meter = energy.EnergyMeter(CPU)
    file.write_text("2000000\n")
    assert meter.joules() == pytest.approx(3.0)


def test_a_counter_that_may_have_begun_again_twice_is_not_believed(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    domain(powercap, "intel-rapl:0", "package-0", 0)  # 1000 J, a second of MOST_WATTS
    sampled, late = energy.EnergyMeter(CPU), energy.EnergyMeter(CPU)
    for now[0] in (0.9, 1.8):
        sampled.sample()
    assert sampled.joules() == 0.0
    assert late.joules() is None


def test_without_a_counter_nothing_is_known(powercap: Path) -> None:
    assert energy.EnergyMeter(CPU).joules() is None
    file = domain(powercap, "intel-rapl:0", "package-0", 0)
    meter = energy.EnergyMeter(CPU)
    file.unlink()
    assert meter.joules() is None
    assert meter.joules() is None


def test_the_counter_of_a_gpu_is_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        NVMLError = ValueError
        shown = 5000

        def nvmlInit(self) -> None: ...

        def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
            return uuid

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
            assert handle == "GPU-1234"
            return self.shown

    class Properties:
        uuid = "1234"

    nvml = Nvml()
    monkeypatch.setattr(energy.importlib, "import_module", lambda name: nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    meter = energy.EnergyMeter(torch.device("cuda"))
    nvml.shown = 7500
    assert meter.joules() == pytest.approx(2.5)


def test_a_gpu_without_the_package_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(energy.importlib, "import_module", missing)
    assert energy.EnergyMeter(torch.device("cuda")).joules() is None
