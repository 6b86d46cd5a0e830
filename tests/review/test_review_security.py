"""The door, tried: each attempt is refused, written down, and changes nothing."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from review_runs import HOSTILE, Place, candidates, fill, served, serving
from sqlalchemy import select

from sapwood.review.batch import BatchConfig, Candidate
from sapwood.review.people import Role, digest, invite, revoke
from sapwood.review.tables import cases, events, metadata, people, sessions, votes
from sapwood.review.web.asking import Review
from sapwood.review.web.guard import LARGEST_BODY

INJECTIONS = (
    "' OR 1=1 --",
    "'; DROP TABLE votes; --",
    '" UNION SELECT token FROM people --',
    "1; DELETE FROM seats",
    "\\'; --",
    "%00",
    "$$; DROP",
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with served(tmp_path / "r.db", candidates(6, hostile=True)) as made:
        yield made


def form_of(page: str) -> str:
    found = re.search(r'name="form" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def refused(place: Place) -> list[str]:
    return [row.detail for row in place.rows(events) if row.action == "refused"]


def test_without_a_token_nothing_opens(place: Place) -> None:
    paths = ("/", "/desk/1", "/queue/1", "/case/1", "/batch/1", "/people", "/runs", "/log", "/guidelines/1", "/media/1/a/0/0")
    for path in paths:
        answer = httpx2.get(place.url + path)
        assert answer.status_code == 401, path
        assert "parcel" not in answer.text
    for path in ("/desk/1/vote", "/desk/1/undo", "/case/1/correct", "/batch/1/close", "/people"):
        assert httpx2.post(place.url + path, data={"verdict": "a"}).status_code == 401
    assert httpx2.get(place.url + "/desk/1", cookies={"sapwood_review": "forged"}).status_code == 401
    assert httpx2.get(place.url + "/in/guessed").status_code == 401
    assert httpx2.post(place.url + "/in", data={"token": "guessed"}).status_code == 401
    assert len(refused(place)) == len(paths) + 8
    assert place.rows(votes) == []
    assert not any("guessed" in line for line in refused(place)), "what was tried as a token is not written down"


def test_a_link_that_ran_out_or_was_closed_opens_nothing(tmp_path: Path) -> None:
    now = [time.time()]
    with served(tmp_path / "r.db", candidates(3), clock=lambda: now[0]) as place, place.client("ann") as ann:
        assert ann.get("/desk/1").status_code == 200
        now[0] += 31 * 86400
        assert ann.get("/desk/1").status_code == 401
        assert "run out" in httpx2.get(place.link("bob")).text
        now[0] -= 31 * 86400
        with place.store.writing() as connection:
            revoke(connection, place.people["ann"])
        assert ann.get("/desk/1").status_code == 401
        assert "was closed" in httpx2.get(place.link("ann")).text
        with place.store.writing() as connection:
            _, token = invite(connection, "bob", Role.RATER, now[0])
        assert httpx2.get(place.link("bob")).status_code == 401, "a new link ends the old one"
        assert httpx2.get(f"{place.url}/in/{token}").status_code == 200


def test_anothers_role_and_anothers_case_stay_closed(place: Place) -> None:
    with place.client("ann") as ann, place.client("bob") as bob, place.client("eve") as eve:
        for path in ("/queue/1", "/case/1", "/batch/1", "/people", "/runs", "/log"):
            assert ann.get(path).status_code == 403
        for path in ("/people", "/runs", "/log"):
            assert eve.get(path).status_code == 403
        mine = ann.get("/desk/1").text
        seat = re.search(r'name="seat" value="(\d+)"', mine)
        assert seat is not None
        theirs = form_of(bob.get("/desk/1").text)
        answer = bob.post("/desk/1/vote", data={"form": theirs, "seat": seat[1], "verdict": "a"}, headers={"HX-Request": "true"})
        assert "Your vote on it was not counted" in answer.text
        form = form_of(eve.get("/guidelines/1").text)
        assert eve.post("/batch/1/close", data={"form": form, "sure": "yes"}).status_code == 403
        form = form_of(mine)
        assert ann.post("/guidelines/1", data={"form": form, "text": "mine"}).status_code == 403
    assert place.rows(votes) == []


def test_forged_forms_are_refused(place: Place) -> None:
    with place.client("ann") as ann, place.client("bob") as bob:
        page = ann.get("/desk/1").text
        seat = re.search(r'name="seat" value="(\d+)"', page)
        assert seat is not None
        good = {"form": form_of(page), "seat": seat[1], "verdict": "a"}
        for form in ("", "wrong", form_of(bob.get("/desk/1").text), "ü"):
            assert ann.post("/desk/1/vote", data={**good, "form": form}).status_code == 403
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            assert ann.post("/desk/1/vote", data=good, headers=headers).status_code == 403
        assert ann.post("/desk/1/vote", json=good).status_code == 415
        assert ann.get("/desk/1/vote").status_code == 404, "nothing changes by following a link"
        assert place.rows(votes) == []
        assert len(refused(place)) == 11
        assert ann.post("/desk/1/vote", data=good, headers={"Origin": place.url, "Sec-Fetch-Site": "same-origin"}).status_code == 200
    assert len(place.rows(votes)) == 1


def test_the_cookie_and_the_headers_are_strict(place: Place) -> None:
    answer = httpx2.post(place.url + "/in", data={"token": place.tokens["ann"]})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert answer.cookies["sapwood_review"] not in {row.id for row in place.rows(sessions)}, "the database holds hashes alone"
    assert {row.token for row in place.rows(people)} == {digest(token) for token in place.tokens.values()}
    for path in ("/", "/static/review.css", "/nowhere"):
        headers = httpx2.get(place.url + path).headers
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
    with place.client("ann") as ann:
        page = ann.get("/desk/1")
        assert page.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]*src=)|<[a-z][^>]*\s(?:on\w+|style)=", page.text), "no script or style stands in the page"


def test_a_script_in_an_answer_stays_text(place: Place) -> None:
    with place.client("eve") as eve:
        for path in ("/desk/1", "/case/1", "/queue/1?queue=all"):
            page = eve.get(path).text
            assert "<img" not in page
            assert "javascript:" not in re.sub(r"\[x\]\(javascript:[^)]*\)", "", page), "it stands there as text at most"
            assert HOSTILE.split(">")[0] + ">" not in page


def test_tricks_with_paths_find_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with place.client("zoe") as zoe:
        for path in (
            "/static/../app.py",
            "/static/..%2f..%2fapp.py",
            "/static/%2e%2e/asking.py",
            "/static//etc/passwd",
            "/static/app.py",
            "/runs/..%2f..%2fetc%2fpasswd",
            "/runs/%2e%2e",
            "/media/1/a/0/-1",
            "/media/1/..%2f/0/0",
            "/case/99999",
            "/case/1e9",
            "/desk/0",
            "/desk/99999999999999999999999",
        ):
            assert zoe.get(path).status_code in (404, 400), path


def test_an_image_comes_only_from_its_folder_and_by_its_place(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "inside.png").write_bytes(b"\x89PNG inside")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (media / "link.png").symlink_to(tmp_path / "outside.png")
    uris = ("inside.png", "../outside.png", str(tmp_path / "outside.png"), "link.png", "inside.txt", "http://evil.example/x.png")
    parts = [{"type": "image", "uri": uri} for uri in uris]
    one = Candidate(
        key="x",
        asked=[{"role": "user", "content": [{"type": "text", "text": "Look"}, *parts]}],
        answers={"a": {"role": "assistant", "content": "yes"}},
    )
    with served(tmp_path / "r.db", [one], media=media) as place, place.client("ann") as ann, place.client("bob") as bob:
        assert 'src="/media/1/asked/0/0"' in ann.get("/desk/1").text
        assert "evil.example" not in re.sub(r"<code>[^<]*</code>", "", ann.get("/desk/1").text)
        assert ann.get("/media/1/asked/0/0").content == b"\x89PNG inside"
        for number in range(1, 7):
            assert ann.get(f"/media/1/asked/0/{number}").status_code == 404
        assert bob.get("/media/1/asked/0/0").status_code == 404, "a rater sees images of a case that was given to them"


def test_a_huge_body_is_refused_before_it_is_held(place: Place) -> None:
    with place.client("ann") as ann:
        form = form_of(ann.get("/desk/1").text)
        body = f"form={form}&comment=".encode() + b"x" * LARGEST_BODY
        answer = ann.post("/desk/1/draft", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code == 413
        many = "&".join(f"f{number}=1" for number in range(3000))
        answer = ann.post("/desk/1/draft", content=f"form={form}&{many}", headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code == 400
        answer = ann.post("/desk/1/draft", content=b"form=%ff%fe", headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.status_code in (400, 403)
    assert any("413" in line for line in refused(place))


def test_sql_in_every_field_is_a_text_like_any_other(place: Place) -> None:
    with place.client("eve") as eve, place.client("zoe") as zoe:
        for number, text in enumerate(INJECTIONS):
            page = eve.get("/desk/1").text
            found = re.search(r'name="seat" value="(\d+)"', page)
            form = form_of(page)
            for field in ("seat", "verdict", "ms", "error-0-a", "criterion-0-a"):
                data = {"form": form, "seat": found[1] if found else "1", "verdict": "x", field: text}
                assert eve.post("/desk/1/vote", data=data).status_code in (200, 400)
            eve.post("/desk/1/draft", data={"form": form, "seat": found[1] if found else "1", "comment": text})
            eve.post("/case/1/correct", data={"form": form, "side": "a", "text": text, "reason": text})
            eve.post("/case/1/decide", data={"form": form, "verdict": "a", "reason": text})
            eve.post("/case/1/correct", data={"form": form, "side": text, "text": text})
            eve.post("/guidelines/1", data={"form": form, "text": text})
            assert eve.get("/queue/1", params={"queue": text, "start": text}).status_code == 404
            assert httpx2.post(place.url + "/in", data={"token": text}).status_code in (401, 429)
            zoe.post("/people", data={"form": form_of(zoe.get("/people").text), "name": text, "role": "rater"})
            assert zoe.get("/log", params={"before": text}).status_code == 200
            assert number < 99
        page = eve.get("/case/1").text
    with place.store.reading() as connection:
        for table in metadata.sorted_tables:
            connection.execute(select(table)).all()
        assert len(connection.execute(select(cases)).all()) == 6
    names = {row.name for row in place.rows(people)}
    assert names >= {" ".join(text.split()) for text in INJECTIONS}
    assert "DROP" in page


def test_too_many_requests_wait(tmp_path: Path) -> None:
    with served(tmp_path / "r.db", candidates(3), votes_a_minute=5) as place, place.client("ann") as ann, place.client("bob") as bob:
        answers = [ann.get("/desk/1") for _ in range(8)]
        assert [answer.status_code for answer in answers].count(429) == 3
        assert int(answers[-1].headers["retry-after"]) > 0
        assert bob.get("/desk/1").status_code == 200, "another person has a pace of their own"
        strangers = [httpx2.get(place.url + "/in/x").status_code for _ in range(40)]
        assert strangers.count(429) >= 10
        assert bob.get("/desk/1").status_code == 200, "strangers of the same address do not stop those who are in"


def test_it_answers_to_its_own_names_alone(tmp_path: Path) -> None:
    store, *_ = fill(tmp_path / "r.db", candidates(2))
    for hosts, named, status in (
        ((), "evil.example", 421),
        ((), "localhost", 401),
        ((), "[", 421),
        (("review.example.org",), "review.example.org", 401),
        (("a",), "b", 421),
    ):
        with serving(Review(store, hosts=hosts)) as url:
            assert httpx2.get(url + "/", headers={"Host": named}).status_code == status
    with serving(Review(store, secure=True)) as url:
        with store.writing() as connection:
            _, token = invite(connection, "ann", Role.RATER, time.time())
        assert "secure" in httpx2.post(url + "/in", data={"token": token}).headers["set-cookie"].lower()
    store.close()


def test_half_a_request_holds_nobody_up(place: Place) -> None:
    host, port = place.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half, place.client("ann") as ann:
        head = "POST /desk/1/vote HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 999"
        half.sendall(f"{head}\r\n\r\nform=".encode())
        assert ann.get("/desk/1").status_code == 200


def test_a_report_opens_apart_and_not_before_its_batch_is_closed(tmp_path: Path) -> None:
    from sapwood.review.web.asking import RunLine

    run = tmp_path / "refunds-1"
    run.mkdir()
    (run / "report.html").write_text("<script>1</script>acme/secret-7b")
    other = RunLine("other", "", "finished", run / "report.html", tmp_path / "other")
    lines = [RunLine("refunds-1", "better", "finished", run / "report.html", run), other]
    with served(tmp_path / "r.db", candidates(2), runs=lambda: lines, source=str(run.resolve())) as place, place.client("zoe") as zoe:
        assert "opens when the batch is closed" in zoe.get("/runs").text
        assert zoe.get("/runs/refunds-1").status_code == 403
        assert "sandbox" in zoe.get("/runs/other").headers["content-security-policy"]
        zoe.post("/batch/1/close", data={"form": form_of(zoe.get("/people").text), "sure": "yes"})
        assert "secret-7b" in zoe.get("/runs/refunds-1").text
        assert zoe.get("/batch/1").text.count("System 1") == 0


def test_single_answers_are_judged_too(tmp_path: Path) -> None:
    with served(tmp_path / "r.db", candidates(3), BatchConfig(single=True)) as place, place.client("ann") as ann:
        page = ann.get("/desk/1").text
        assert 'value="usable"' in page
        seat = re.search(r'name="seat" value="(\d+)"', page)
        assert seat is not None
        assert ann.post("/desk/1/vote", data={"form": form_of(page), "seat": seat[1], "verdict": "tie"}).status_code == 400
        assert ann.post("/desk/1/vote", data={"form": form_of(page), "seat": seat[1], "verdict": "usable"}).status_code == 200
        assert [row.verdict for row in place.rows(votes)] == ["usable"]
        with place.client("zoe") as zoe:
            assert "50.0" in zoe.get("/batch/1").text
            assert zoe.get("/case/1").status_code == 200
