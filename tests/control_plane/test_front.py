"""In front: whom forwarded addresses are believed of, and TLS with its door for this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.control_plane.bench import make_settings
from tests.control_plane.told_plane import serving
from tests.images.certificates import write_certificates

from multinode.errors import InputError
from multinode_control_plane import listening
from multinode_control_plane.api.limits import WRONG_KEYS
from multinode_control_plane.api.proxies import TrustedProxies
from multinode_control_plane.listening import Serving, local_door, peer_url
from multinode_control_plane.settings import parser, resolve
from multinode_control_plane.tls import Certificate


def client(
    *forwarded: str, peer: str = "10.0.0.9", trusted: tuple[str, ...] = ("10.0.0.0/8",)
) -> str:
    headers = [(b"x-forwarded-for", text.encode()) for text in forwarded]
    return TrustedProxies(trusted).client_of({"client": (peer, 1), "headers": headers})


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ((), "10.0.0.9"),
        (("192.0.2.7",), "192.0.2.7"),
        (("1.1.1.1, 192.0.2.7",), "192.0.2.7"),  # the client may have sent the first one itself
        (("1.1.1.1", "192.0.2.7"), "192.0.2.7"),
        (("192.0.2.7, 10.1.1.1",), "192.0.2.7"),
        (("10.1.1.1",), "10.1.1.1"),
        (("192.0.2.7, nonsense, 10.1.1.1",), "10.1.1.1"),
        (("2001:db8::1",), "2001:db8::1"),
    ],
)
def test_a_trusted_proxy_says_who_asks(forwarded, address):
    assert client(*forwarded) == address


def test_others_are_not_believed():
    assert client("192.0.2.7", peer="192.0.2.1") == "192.0.2.1"
    assert client("192.0.2.7", trusted=()) == "10.0.0.9"
    assert client("192.0.2.7", peer="::ffff:10.0.0.9") == "192.0.2.7"
    assert client(peer="") == ""


def test_the_scheme_is_believed_of_them_too():
    made = TrustedProxies(["10.0.0.0/8"])
    for peer, said, scheme in (
        ("10.0.0.9", b"https", "https"),
        ("192.0.2.1", b"https", "http"),
        ("10.0.0.9", b"gopher", "http"),
    ):
        headers = [(b"x-forwarded-proto", said)]
        asked = {"client": (peer, 1), "headers": headers, "scheme": "http"}
        assert made.scheme_of(asked) == scheme


@pytest.mark.parametrize("is_trusted", [True, False])
def test_wrong_keys_are_counted_by_the_forwarded_address(tmp_path, is_trusted):
    with serving(tmp_path, trusted_proxies=("127.0.0.1/32",) if is_trusted else ()) as served:
        for n in range(WRONG_KEYS + 1):
            answer = ask(served.url, "wrong", f"192.0.2.{n}")
        assert answer.status_code == (401 if is_trusted else 429)


def ask(url: str, key: str, address: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", "X-Forwarded-For": address}
    return httpx.get(url + "/v1/projects", headers=headers, trust_env=False)


def resolved(tmp_path: Path, *argv: str) -> Any:
    return resolve(parser().parse_args(["--home", str(tmp_path), *argv]), {})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trusted-proxies=10.0.0.0/8,proxy"], "'proxy' is not an address or a network"),
        (["--trusted-proxies=10.0.0.1/8"], "'10.0.0.1/8' is not an address or a network"),
        (["--tls-cert=server.pem"], "belong together"),
        (["--keep-invocations=3600"], "--keep-invocations 3600 is too short"),
        (["--max-open-requests=9"], "--max-open-requests 9 is too few"),
        (["--tls-cert=no.pem", "--tls-key=server.pem"], "no.pem cannot be read: No such file"),
        (["--tls-cert=server.pem", "--tls-key=no.pem"], "no.pem cannot be read: No such file"),
        (["--tls-cert=empty.pem", "--tls-key=server.pem"], "are no certificate with its key"),
        (["--tls-cert=ca.pem", "--tls-key=server.pem"], "are no certificate with its key"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    write_certificates(tmp_path)
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, *argv)
    assert message in caught.value.message


def test_proxies_are_addresses_and_networks(tmp_path):
    made = resolved(tmp_path, "--trusted-proxies", "127.0.0.1, 10.0.0.0/8,::1,127.0.0.1")
    assert made.trusted_proxies == ("127.0.0.1/32", "10.0.0.0/8", "::1/128")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "172.17.0.1", "mn.example.com"])
def test_plain_http_beyond_loopback_has_to_be_wanted(tmp_path, monkeypatch, host):
    monkeypatch.chdir(tmp_path)
    write_certificates(tmp_path)
    beyond = (f"--host={host}", "--runner=docker")
    with pytest.raises(InputError, match="in plain HTTP whoever is on the way reads") as caught:
        resolved(tmp_path, *beyond)
    assert host in caught.value.message
    for way in ("--tls-cert", "--trusted-proxies", "--allow-http"):
        assert way in caught.value.hint
    tls = ("--tls-cert=server.pem", "--tls-key=server.pem")
    for said in (tls, ("--trusted-proxies=10.0.0.1",), ("--allow-http",)):
        assert resolved(tmp_path, *beyond, *said).host == host
    with pytest.raises(InputError, match="isolates nothing"):
        resolved(tmp_path, f"--host={host}", "--runner=process", "--allow-http")


def test_on_loopback_plain_http_is_what_it_speaks(tmp_path):
    for host in ("127.0.0.1", "localhost", "::1"):
        assert not resolved(tmp_path, f"--host={host}").allow_http
    variables = {"MULTINODE_HOST": "0.0.0.0", "MULTINODE_ALLOW_HTTP": "1"}
    assert resolve(parser().parse_args(["--runner=docker"]), variables).allow_http


def test_the_door_of_this_machine_keeps_its_port_where_that_is_free(tmp_path):
    write_certificates(tmp_path)
    pem = tmp_path / "server.pem"
    assert local_door(make_settings(tmp_path), 9) is None
    settings = make_settings(tmp_path, host="0.0.0.0", tls_cert=pem, tls_key=pem)
    first = local_door(settings, None)
    second = local_door(settings, first.port)
    assert second.port != first.port
    port = first.port
    first.listener.close()
    second.listener.close()
    again = local_door(settings, port)
    assert again.url == f"http://127.0.0.1:{port}"
    again.listener.close()
    assert peer_url(settings, 7) == f"https://{listening.socket.gethostname()}:7"


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


def test_peers_trust_the_certificate_that_they_share_and_no_other(tmp_path):
    certificates = []
    for name in ("shared", "another"):
        (tmp_path / name).mkdir()
        write_certificates(tmp_path / name, address="192.0.2.1")  # not where it listens
        pem = tmp_path / name / "server.pem"
        certificates.append(make_settings(tmp_path, tls_cert=pem, tls_key=pem).certificate)

    async def ask_with(certificate: Certificate, port: int) -> str:
        async with httpx.AsyncClient(verify=certificate.of_peers(), trust_env=False) as asked:
            return (await asked.get(f"https://127.0.0.1:{port}/")).text

    async def test() -> None:
        shared, another = certificates
        listener = listening.bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        served = Serving(greet, listener, shared)
        try:
            assert await ask_with(shared, port) == "here"
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await ask_with(another, port)
        finally:
            await served.end()

    asyncio.run(test())
