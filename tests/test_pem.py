"""Certificates and private keys in PEM files."""

import base64
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gatewayd.settings.load import SettingsError, load
from tests.certificates import certificate
from tests.inifile import ini_file, ini_problems, read


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The files of a certificate and its key."""
    return certificate(tmp_path_factory.mktemp("pair"), "own")


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBCjCBsaADAgECAgEBMAoGCCqGSM49BAMCMA8xDTALBgNVBAMMBHRlc3QwHhcN
MjAwMTAxMDAwMDAwWhcNMjAwMTAyMDAwMDAwWjAPMQ0wCwYDVQQDDAR0ZXN0MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE6rfym0Hvy2JDF6JbS9AT9E1mI9ALk/xp
BAjytqEzcSbjXp91PDThsokKIVgbWVumFtzgRl+yfUu7/KQiDWcT8TAKBggqhkjO
PQQDAgNIADBFAiAp+rh7sPXrmpseouIJ732WmHlrJightANh3TKzCs4XVwIhAOvE
xZ6xJl/pJAhe8i3iGBlzWXGrUq4XAi3Z63jyU0BX
-----END CERTIFICATE-----
"""


def test_tls_ca_must_have_a_certificate(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    good.write_text(f"# Árvíztűrő\n{CERTIFICATE}")
    bad.write_text("nothing")
    text = "[backend a]\nurl = https://a\ntls_ca = "
    trusted = load({}, path=ini_file(tmp_path, text + str(good))).backends[0].tls_ca
    assert trusted is not None
    assert (trusted.path, trusted.content) == (str(good), good.read_bytes())
    for path in (bad, tmp_path, tmp_path / "gone", "/dev/null"):
        [line] = ini_problems(tmp_path, text + str(path))
        assert line.startswith("FILE:3: [backend a] tls_ca: ")
        assert "expected a" in line


def test_a_certificate_that_openssl_rejects_is_a_mistake_of_its_setting(tmp_path: Path) -> None:
    crt, key = certificate(tmp_path, "own")
    good = Path(crt).read_text()
    bad = tmp_path / "bad.pem"
    bad.write_text(good + good.replace("MII", "MIX"))
    trusting = f"[backend a]\nurl = https://a\ntls_ca = {bad}\n"
    [line] = ini_problems(tmp_path, trusting)
    assert line.startswith("FILE:3: [backend a] tls_ca: certificate 2 cannot be read (")
    own = f"[gateway]\ntls_key = {key}\ntls_certificate = {bad}\n"
    [line] = ini_problems(tmp_path, own)
    assert line.startswith("FILE:3: [gateway] tls_certificate: certificate 2 cannot be read (")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["tls_certificate", "tls_key", "tls_ca"]),
    st.dictionaries(st.integers(0, 300), st.integers(0, 255), min_size=1, max_size=4),
    st.integers(0, 300),
)
def test_wrong_bytes_in_a_file_are_a_mistake_of_its_setting_or_harmless(
    tmp_path: Path, pair: tuple[str, str], key: str, wrong: dict[int, int], end: int
) -> None:
    files = {"tls_certificate": pair[0], "tls_key": pair[1], "tls_ca": pair[0]}
    first, *lines, last = Path(files[key]).read_text().splitlines()
    content = bytearray(base64.b64decode("".join(lines)))
    for place, byte in wrong.items():
        content[place % len(content)] = byte
    content = content[: len(content) - max(0, end - 250)]
    bad = tmp_path / "bad.pem"
    bad.write_text("\n".join([first, base64.encodebytes(content).decode(), last]))
    files[key] = str(bad)
    text = "[backend a]\nurl = https://a\ntls_ca = {tls_ca}\n[gateway]\n"
    text += "tls_certificate = {tls_certificate}\ntls_key = {tls_key}\n"
    try:
        read(tmp_path, text.format(**files))
    except SettingsError as error:
        (line,) = error.problems
        # A certificate that is good in itself may be that of another key.
        named = "tls_key" if key == "tls_certificate" and "] tls_key: is not" in line else key
        assert f"] {named}: " in line and "expected " in line
