"""The HTTP service: a real server in a process of its own, and real requests."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tiny import CLASSES, MAX_CHARS, MIXED, SENTENCES, build

from danlu.serve.engine import Engine
from danlu.serve.http import MAX_BODY, MAX_TEXTS

_SERVE = """
import sys
from pathlib import Path
from danlu.serve.engine import Engine
from danlu.serve.http import serve_forever

serve_forever(Engine.load(Path(sys.argv[1])), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""
SHORT = [one for one in MIXED if len(one) <= MAX_CHARS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("http") / "model", name="tiny<b>&co")


@pytest.fixture(scope="module")
def url(folder):
    command = [sys.executable, "-c", _SERVE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder)


@pytest.fixture(scope="module")
def client(url):
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def _same(answers, expected):
    assert len(answers) == len(expected)
    for one, other in zip(answers, expected, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert (one["tokens"], one["truncated"]) == (other["tokens"], other["truncated"])


def _refused(response, status, *words):
    assert response.status_code == status, response.text
    reason = response.json()["error"]
    assert all(word in reason for word in words), reason


def test_several_texts_are_answered_as_the_engine_does(client, engine):
    response = client.post("/v1/predict", json={"texts": SHORT})
    assert response.status_code == 200
    content = response.json()
    assert content.keys() == {"model", "predictions"}
    assert content["model"] == "tiny<b>&co"
    _same(content["predictions"], engine.predict(SHORT))


def test_one_text_is_answered_as_a_list_of_one(client, engine):
    response = client.post("/v1/predict", json={"text": "房间很干净"})
    _same(response.json()["predictions"], engine.predict(["房间很干净"]))
    assert list(response.json()["predictions"][0]["probabilities"]) == CLASSES


def test_a_text_that_is_too_long_for_the_model_is_said_to_be_cut(client):
    response = client.post("/v1/predict", json={"text": "breakfast " * 45})
    assert response.json()["predictions"][0]["truncated"] is True


def test_personal_data_are_scrubbed_before_the_model(client):
    given, placeholder = client.post(
        "/v1/predict", json={"texts": ["write to a.b@example.com", "write to [EMAIL]"]}
    ).json()["predictions"]
    assert given == placeholder


def test_twenty_requests_at_once_are_all_answered_right(url, engine):
    batches = [SENTENCES[n : n + 1 + n % 5] for n in range(20)]
    expected = [engine.predict(batch) for batch in batches]
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

        def ask(batch):
            return client.post("/v1/predict", json={"texts": batch})

        with ThreadPoolExecutor(20) as pool:
            responses = list(pool.map(ask, batches))
    for response, right in zip(responses, expected, strict=True):
        assert response.status_code == 200
        _same(response.json()["predictions"], right)


def test_health_names_the_model(client):
    content = client.get("/healthz").json()
    assert content["status"] == "ok"
    assert content["model"] == "tiny<b>&co"


def _metrics(client):
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    rows = [line.rsplit(" ", 1) for line in response.text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in rows}


def test_metrics_count_requests_by_status_texts_and_seconds(client):
    client.post("/v1/predict", json={"text": "a"})
    client.post("/v1/predict", content=b"{")
    before = _metrics(client)
    client.post("/v1/predict", json={"texts": ["a", "b", "c"]})
    client.post("/v1/predict", json={"text": "d"})
    client.post("/v1/predict", content=b"{")
    after = _metrics(client)
    grown = {name: after[name] - before[name] for name in before}
    assert grown['danlu_requests_total{status="200"}'] == 2
    assert grown['danlu_requests_total{status="400"}'] == 1
    assert grown["danlu_texts_total"] == 4
    assert grown["danlu_request_seconds_count"] == 3
    assert grown["danlu_request_seconds_sum"] > 0


def test_the_page_is_whole_by_itself_and_escapes_the_name(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "<h1>tiny&lt;b>&amp;co</h1>" in response.text
    assert "{{" not in response.text
    assert not re.search(r"https?:|(?:src|href)\s*=\s*[\"']?//|@import|url\(", response.text)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"texts=a",
        b'{"text": "a"} {',
        b'{"text": "\xff"}',
        b'{"text": 1' + b"0" * 5000 + b"}",
    ],
    ids=["empty", "open", "form", "trailing", "not UTF-8", "endless number"],
)
def test_malformed_json_is_refused(client, body):
    _refused(client.post("/v1/predict", content=body), 400, "JSON")


@pytest.mark.parametrize("depth", [1_000, 1_000_000])
@pytest.mark.parametrize("sign", ["[", '{"text":'])
def test_deeply_nested_json_is_refused(client, depth, sign):
    depth = min(depth, (MAX_BODY - 100) // len(sign))
    close = {"[": "]", '{"text":': "}"}[sign]
    body = (sign * depth + "1" + close * depth)[:MAX_BODY]
    _refused(client.post("/v1/predict", content=body.encode()), 400)
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        [],
        "a",
        None,
        1,
        {},
        {"texts": "a"},
        {"texts": ["a", 1]},
        {"texts": [["a"]]},
        {"texts": None},
        {"text": ["a"]},
        {"text": None},
        {"text": "a", "texts": ["a"]},
        {"text": "a", "model": "other"},
        {"Text": "a"},
    ],
    ids=str,
)
def test_the_wrong_shape_is_refused(client, content):
    _refused(client.post("/v1/predict", json=content), 400)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_an_empty_text_is_refused_by_its_number(client, text):
    _refused(client.post("/v1/predict", json={"texts": ["a", text]}), 422, "text 1", "empty")


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u200e", "\x00"])
def test_a_text_of_which_cleaning_leaves_nothing_is_refused(client, text):
    """No training text was empty, so an answer would rest on nothing."""
    _refused(client.post("/v1/predict", json={"text": text}), 422, "empty")


def test_the_number_of_texts_is_bounded(client):
    _refused(client.post("/v1/predict", json={"texts": []}), 422, "0")
    most = client.post("/v1/predict", json={"texts": ["a"] * MAX_TEXTS})
    assert len(most.json()["predictions"]) == MAX_TEXTS
    over = client.post("/v1/predict", json={"texts": ["a"] * (MAX_TEXTS + 1)})
    _refused(over, 422, str(MAX_TEXTS + 1))


def test_the_length_of_a_text_is_bounded(client):
    assert client.post("/v1/predict", json={"text": "床" * MAX_CHARS}).status_code == 200
    response = client.post("/v1/predict", json={"texts": ["a", "床" * (MAX_CHARS + 1)]})
    _refused(response, 422, "text 1", f"{MAX_CHARS:,}")


def test_the_size_of_a_request_is_bounded(client):
    wrapped = '{{"text": "{}"}}'
    fits = wrapped.format("x" * (MAX_BODY - len(wrapped.format(""))))
    assert len(fits) == MAX_BODY
    _refused(client.post("/v1/predict", content=fits.encode()), 422)
    _refused(client.post("/v1/predict", content=(fits + " ").encode()), 413)
    assert client.get("/healthz").status_code == 200


def test_a_request_that_never_says_its_size_is_bounded_too(client):
    chunks = (b"x" * 65_536 for _ in range(MAX_BODY // 65_536 + 1))
    _refused(client.post("/v1/predict", content=chunks), 413)


@pytest.mark.parametrize("half", [r"\ud83d", r"a\udc00b", r"\udc00\ud83d"])
def test_half_a_surrogate_pair_is_refused(client, half):
    response = client.post("/v1/predict", content=f'{{"text": "{half}"}}'.encode())
    _refused(response, 400, "surrogate")


def test_a_whole_surrogate_pair_is_one_character(client, engine):
    response = client.post("/v1/predict", content=rb'{"text": "\ud83d\ude00"}')
    _same(response.json()["predictions"], engine.predict(["😀"]))


def test_the_wrong_method_or_path_is_refused(client):
    response = client.get("/v1/predict")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]
    assert client.post("/healthz").status_code == 405
    assert client.get("/v1/nothing").status_code == 404


def test_a_request_cut_off_half_way_does_not_harm_the_next(client, url):
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as cut:
        cut.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    assert client.post("/v1/predict", json={"text": "a"}).status_code == 200


def test_it_listens_on_this_machine_alone(url):
    host, port = url.removeprefix("http://").rsplit(":", 1)
    assert host == "127.0.0.1"
    assert int(port) > 0
    with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
        pass
    # Another address of the same machine, which a server on 0.0.0.0 would answer.
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", int(port)), timeout=5):
        pass


def test_it_stops_when_it_is_told_to(folder):
    command = [sys.executable, "-c", _SERVE, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip()
            assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=30) in (0, -signal.SIGTERM)
        finally:
            server.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
