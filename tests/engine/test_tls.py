"""An engine behind TCP with TLS: the real engine behind a relay that asks for certificates as dockerd does."""

import datetime
import os
import shutil
import ssl
import threading

import pytest
from tests.hand_made_image import needs_engine
from tests.images.bench import engine_socket, relay
from tests.images.certificates import server_context, write_certificates

from multinode.errors import EngineUnavailable
from multinode_control_plane.runners.docker_engine import Engine
from multinode_engine.connection import connect, unavailable

FOLLOWERS = 30


@pytest.fixture
def folder(tmp_path):
    """Certificates that fit."""
    needs_engine()
    made = tmp_path / "certificates"
    made.mkdir()
    write_certificates(made)
    return made


@pytest.fixture
def address(folder):
    with relay(engine_socket(), server_context(folder)) as (address, _):
        yield address


def environ(address, folder):
    return {
        "PATH": os.environ["PATH"],
        "DOCKER_HOST": address,
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(folder),
    }


def refused(environ):
    with pytest.raises(EngineUnavailable) as caught:
        connect(environ, timeout_s=20)
    return caught.value


def test_it_answers_whoever_has_a_certificate(address, folder):
    engine = Engine.connect(environ(address, folder))
    assert (engine.facts.url, engine.facts.is_remote) == (address, True)
    engine.close()


def test_connections_are_kept_for_as_many_streams_as_there_are_workers(folder):
    with relay(engine_socket(), server_context(folder)) as (address, connections):
        engine = Engine.connect(environ(address, folder))
        for _ in range(2):
            before = len(connections)
            streams = [engine.events([], ["die"]) for _ in range(FOLLOWERS)]
            assert engine.facts_of() == engine.facts
            for stream in streams:
                stream.close()
            assert len(connections) - before <= FOLLOWERS + 1
        engine.close()


def test_a_stream_ends_when_it_is_closed_by_another_thread(address, folder):
    engine = Engine.connect(environ(address, folder))
    streams = [engine.events([], ["die"]) for _ in range(8)]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for stream in streams:
        stream.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for stream in streams:
        stream.close()  # again: nothing happens
    engine.close()


def test_certificates_that_are_named_are_looked_at_whatever_else_is_set(address, folder, tmp_path):
    write_certificates(tmp_path)
    other = {**environ(address, tmp_path), "DOCKER_TLS_VERIFY": ""}
    assert "is not trusted" in refused(other).message


def test_an_authority_that_did_not_sign_is_told(address, folder, tmp_path):
    write_certificates(tmp_path)
    error = refused(environ(address, tmp_path))
    assert "is not trusted (certificate verify failed" in error.message
    assert "ca.pem in DOCKER_CERT_PATH" in error.hint


def test_another_name_than_the_certificates_is_told(tmp_path):
    needs_engine()
    write_certificates(tmp_path, address="10.9.9.9")
    with relay(engine_socket(), server_context(tmp_path)) as (address, _):
        error = refused(environ(address, tmp_path))
    assert "IP address mismatch" in error.message
    assert "for the name in DOCKER_HOST" in error.hint


def test_an_expired_certificate_of_this_side_is_told(tmp_path):
    needs_engine()
    write_certificates(tmp_path, client_lasts=datetime.timedelta(minutes=-1))
    with relay(engine_socket(), server_context(tmp_path)) as (address, _):
        error = refused(environ(address, tmp_path))
    assert "does not accept this client's certificate (certificate expired)" in error.message
    assert "valid today" in error.hint


def test_a_certificate_that_the_engines_authority_did_not_sign_is_told(address, folder, tmp_path):
    write_certificates(tmp_path)
    shutil.copy(folder / "ca.pem", tmp_path)
    error = refused(environ(address, tmp_path))
    assert "does not accept this client's certificate" in error.message
    assert "--tlscacert" in error.hint


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_file_that_is_missing_is_told(address, folder, name):
    (folder / name).unlink()
    error = refused(environ(address, folder))
    assert "are not there" in error.message
    assert "a folder with ca.pem, cert.pem and key.pem" in error.hint


def test_an_engine_without_tls_is_told(folder):
    with relay(engine_socket()) as (address, _):
        error = refused(environ(address, folder))
    assert "speaks no TLS" in error.message
    assert "--tlsverify" in error.hint


def test_dockerds_own_words_for_a_client_without_tls_are_put_into_ours():
    said = ValueError("400 Client Error: Client sent an HTTP request to an HTTPS server.")
    error = unavailable("tcp://far:2376", said)
    assert error.message == "The Docker engine at tcp://far:2376 wants TLS."
    assert "DOCKER_TLS_VERIFY=1" in error.hint


def test_an_engine_that_closes_without_a_word_has_not_let_us_in():
    """What comes of dockerd's refusal of a certificate, as a rule: it closes before its alert is read."""
    said = ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:2427)")
    refused = unavailable("tcp://far:2376", said)
    assert "does not accept this client's certificate." in refused.message
    later = unavailable("tcp://far:2376", said, has_answered=True)
    assert "certificate" not in str(later)


def test_certificates_of_a_past_engine_do_not_keep_the_local_one_away(tmp_path):
    needs_engine()
    here = {"DOCKER_HOST": f"unix://{engine_socket()}", "DOCKER_CERT_PATH": str(tmp_path)}
    connect(here, timeout_s=20).close()
