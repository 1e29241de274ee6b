"""The pages and their addresses: what is asked for is shown, what was typed is text, and nobody else is answered."""

import html
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from report.examples import EVIL
from termwise.core.decomposition import Decomposition
from termwise.engine import Results
from termwise.predictions import Explanation
from termwise.view import application
from termwise.view.app import HEADERS
from termwise.view.browsed import Browsed

from .made import SCALARS, made

HOSTILE = [EVIL, '"><img src=x onerror=alert(1)>', "../../etc/passwd", "{{ 7 * 7 }}", "a\x00b\u202ec", "", "' or 1=1 --", "é🙂"]


def client(path):
    return TestClient(application(path), base_url="http://127.0.0.1:8000", raise_server_exceptions=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("view") / "results", 330, batch=50, bad=(3, 120))


@pytest.fixture(scope="module")
def site(folder):
    return client(folder)


class Reader(HTMLParser):
    """The table of rows, links by their text, and every tag and attribute that there is."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.rows, self.links, self.tags, self.attributes, self._in = [], {}, set(), set(), None
        self._table = self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(found)
        if tag == "table":
            self._table = "tw-rows" in found.get("class", "") and not self.rows
        if tag == "tr" and self._table:
            self.rows.append([])
        self._cell = (tag == "td" and self._table) or (self._cell and tag == "a")
        if tag == "td" and self._table:
            self.rows[-1].append("")
        if tag == "a":
            self._in = found["href"]

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = False
        if tag in ("td", "a"):
            self._in = None
        self._cell = self._cell and tag != "td"

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data
        if self._in is not None and data.strip():
            self.links[data.strip()] = self._in


def read(answer):
    assert answer.status_code == 200, answer.text
    return Reader(answer.text)


def keys(answer):
    return [row[1] for row in read(answer).rows[1:]]


def every_page(site, query):
    """Keys of all pages, by the link to the next."""
    found, address = [], f"/?{query}"
    while address:
        page = Reader(site.get(address).text)
        found += [row[1] for row in page.rows[1:]]
        address = page.links.get("next")
    return found


def test_the_first_page_says_what_the_run_was(site, folder):
    text = html.unescape(site.get("/").text)
    for said in (
        "explain · bag · films.jsonl",
        "328 of 330 rows have a result, 2 failed.",
        "settings.seed",
        "rows 1 to 50 of 328",
    ):
        assert said in text
    assert text.count("ValueError: it is bad") == 2
    assert "The run is not finished" not in text
    for column in Results(folder).columns:
        assert f">{column}</a>" in text


@pytest.mark.parametrize(
    "query",
    [
        "",
        "sort=score",
        "sort=score&order=descending",
        "sort=class",
        "text=snow&sort=error&order=descending",
        "column=count&is=above&value=500&column=good&is=equal&value=true&sort=count",
    ],
)
def test_pages_are_the_rows_that_were_asked_for_in_their_order(site, folder, query):
    frame = Results(folder).scalars().to_pandas()
    said = dict(part.split("=") for part in query.split("&") if part)
    if "text" in said:
        frame = frame[frame["text"].str.contains("snow")]
    if "column" in said:
        frame = frame[(frame["count"] > 500) & frame["good"]]
    if "sort" in said:
        frame = frame.sort_values(said["sort"], ascending="order" not in said, kind="stable")
    assert every_page(site, query) == list(frame["key"])
    assert len(frame) > 50


def test_a_head_sorts_and_turns_round(site):
    page = read(site.get("/?text=the&page=3"))
    assert page.links["score"] == "/?text=the&sort=score&order=descending#rows"
    assert page.links["key"] == "/?text=the&sort=key#rows"
    assert read(site.get(page.links["score"])).links["score"] == "/?text=the&sort=score#rows"
    assert 'aria-sort="descending"' in site.get(page.links["score"]).text


def test_the_last_page_stands_for_those_beyond(site):
    assert keys(site.get("/?page=7")) == keys(site.get("/?page=99")) == [f"line {i}" for i in range(303, 331)]
    assert "next" not in read(site.get("/?page=7")).links
    assert "previous" not in read(site.get("/")).links


def test_a_row_is_its_card_with_its_neighbours(site, folder):
    results = Results(folder)
    table = results.scalars().to_pandas().sort_values("score", ascending=False, kind="stable").reset_index()
    query = "sort=score&order=descending"
    for place in (0, 7, len(table) - 1):
        row = table.loc[place]
        text = html.unescape(site.get(f"/row/{row['row']}?{query}").text)
        assert f"<h2>{row['key']}</h2>" in text
        assert f"{place + 1} of 328" in text
        assert results[int(row["index"])].summary() in text
        links = Reader(text).links
        beside = {"previous": place - 1, "next": place + 1}
        expected = {n: f"/row/{table.loc[p]['row']}?{query}" for n, p in beside.items() if 0 <= p < len(table)}
        assert {n: links[n] for n in beside if n in links} == expected
        assert links["all rows"] == f"/?{query}" + (f"&page={place // 50 + 1}" if place >= 50 else "") + "#rows"


def test_a_row_that_was_filtered_away_can_still_be_opened(site):
    text = site.get("/row/0?column=class&is=equal&value=ham").text
    assert "not among the rows that were asked for" in text
    assert "next" not in Reader(text).links


def test_a_row_can_be_taken_away(site, folder, tmp_path):
    place = 130
    row = Results(folder).scalars("row")["row"][place].as_py()
    links = read(site.get(f"/row/{row}")).links
    answer = site.get(links["as safetensors"])
    assert answer.headers["content-disposition"] == f'attachment; filename="row-{row}.safetensors"'
    (tmp_path / "row.safetensors").write_bytes(answer.content)
    assert torch.equal(Decomposition.load(tmp_path / "row.safetensors").whole, Results(folder)[place].whole)
    alone = site.get(links["as a page"])
    assert alone.headers["content-disposition"] == f'attachment; filename="row-{row}.html"'
    assert f"line {row + 1}" in alone.text
    assert "/script/" not in alone.text  # it needs no server


def test_failed_rows_have_a_page_of_their_own(tmp_path):
    site = client(made(tmp_path / "out", 200, batch=100, bad=range(20, 90), reason=f"ValueError: {EVIL}"))
    first = site.get("/").text
    assert 'href="/failed"' in first
    assert first.count("ValueError") == 5
    rows = [Reader(site.get(f"/failed?page={n}").text).rows[1:] for n in (1, 2)]
    assert [r[1] for r in rows[0] + rows[1]] == [f"line {i + 1}" for i in range(20, 90)]
    assert rows[0][0][2] == f"ValueError: {EVIL}"
    assert site.get("/row/25").status_code == 404


@pytest.mark.parametrize("address", ["/", "/row/2", "/failed", "/mean", "/row/2/page.html"])
def test_whatever_was_named_is_text(tmp_path, address):
    names = {"verb": EVIL, "settings": {EVIL: EVIL, "model": HOSTILE[1]}}
    path = made(
        tmp_path / "out",
        20,
        batch=10,
        keys=lambda i: HOSTILE[i % 8],
        labels=lambda i: HOSTILE[(i + 3) % 8],
        count=EVIL,
        bad=(5,),
        reason=EVIL,
        **names,
    )
    plain = client(made(tmp_path / "plain", 20, batch=10, bad=(5,)))
    ours, expected = (Reader(site.get(address, params={"text": ""}).text) for site in (client(path), plain))
    assert ours.tags == expected.tags
    assert ours.attributes == expected.attributes
    assert "alert" in client(path).get(address).text


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_was_typed_is_text(site, text):
    plain = Reader(site.get("/", params={"text": "zzz"}).text)
    found = Reader(site.get("/", params={"text": text or " "}).text)
    assert found.tags <= plain.tags | {
        "table",
        "thead",
        "tbody",
        "th",
        "tr",
        "td",
        "figure",
        "details",
        "summary",
        "section",
        "h3",
        "script",
    }
    assert found.attributes <= plain.attributes | Reader(site.get("/").text).attributes
    for name, query in {
        "column": {"column": text or "x", "is": "equal", "value": "1"},
        "sort": {"sort": text or "x"},
        "page": {"page": text or "x"},
    }.items():
        answer = site.get("/", params=query)
        assert answer.status_code == 400, name
        assert 'role="alert"' in answer.text
        assert Reader(answer.text).tags <= Reader(site.get("/").text).tags
        assert Reader(answer.text).attributes <= Reader(site.get("/").text).attributes | {"selected", "role"}
        assert EVIL not in answer.text


def test_a_query_that_cannot_be_answered_says_why_above_all_rows(site):
    answer = site.get("/?text=snow&column=error&is=most&value=much")
    assert answer.status_code == 400
    assert "error is a number, and &#39;much&#39; is none" in answer.text
    assert "rows 1 to 50 of 328" in answer.text
    for kept in (
        'value="snow"',
        "<option selected>error</option>",
        '<option value="most" selected>',
        'name="value" value="much"',
    ):
        assert kept in answer.text  # to be mended
        assert kept not in site.get("/").text
    assert site.get("/row/0?page=x").status_code == 400
    assert site.get("/failed?page=0").status_code == 400


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8000",
        "evil.example:127.0.0.1",
        "192.168.0.1",
        "[::1]:8000",
        "",
    ],
)
def test_nobody_is_answered_who_asks_under_another_name(site, host):
    answer = site.get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "line 1" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1"])
def test_this_machine_is_answered(site, host):
    assert site.get("/", headers={"host": host}).status_code == 200


def test_no_other_site_may_read_or_frame_an_answer(site):
    for address in ("/", "/row/0", "/failed", "/mean", "/nothing", "/row/0/row.safetensors", "/?page=x"):
        answer = site.get(address, headers={"origin": "http://evil.example"})
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert site.get("/", headers={"host": "evil.example"}).headers["X-Frame-Options"] == "DENY"
    policy = HEADERS["Content-Security-Policy"]
    assert re.search(r"script-src 'self';", policy)
    assert "default-src 'none'" in policy


def test_pages_have_no_script_but_those_they_name(site):
    text = site.get("/row/0").text
    scripts = re.findall(r"<script(?![^>]*application/json)([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [inside for _, inside in scripts] == ["", ""]
    for address, _ in scripts:
        answer = site.get(re.search('src="(.*)"', address)[1])
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "immutable" in answer.headers["cache-control"]
    assert not re.search(r"\son\w+=|javascript:|http-equiv", text)


@pytest.mark.parametrize(
    "address",
    [
        "/script/../app.py",
        "/script/%2e%2e%2fapp.py",
        "/..%2f..%2fetc/passwd",
        "/row/../../etc/passwd",
        "/row/-1",
        "/row/1e3",
        "/row/99999999999999999999999",
        "/row/3",
        "/row/0/../manifest.json",
        "/manifest.json",
        "/table.parquet",
        "/row/0/x",
        "/script/",
        "/static/page.js",
    ],
)
def test_no_address_is_a_path(site, address):
    answer = site.get(address)
    assert answer.status_code == 404
    assert "There is nothing here" in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(site, method):
    assert site.request(method, "/").status_code == 405
    assert site.request(method, "/row/0").status_code == 405


def test_looking_leaves_the_folder_as_it_was(folder):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    site = client(folder)
    for address in ("/?sort=error", "/row/0", "/row/0/row.safetensors", "/row/0/page.html", "/failed"):
        site.get(address)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before


def test_a_refresh_shows_what_was_done_since(tmp_path, monkeypatch):
    monkeypatch.setattr("termwise.view.browsed.SHARE", 0)
    path = made(tmp_path / "out", 200, batch=20, finished=False)
    site = client(path)
    text = site.get("/").text
    assert "100 of 200 rows have a result" in text
    assert "The run is not finished: this is how far it was at" in text
    assert site.get("/row/25").status_code == 404
    assert "line 41" in site.get("/row/40").text
    made(path, 200, batch=20)  # it goes on, and ends
    assert "200 of 200 rows have a result, 0 failed." in site.get("/").text
    assert "line 26" in site.get("/row/25").text


def test_a_run_that_ends_between_two_looks_is_looked_at_again(tmp_path, monkeypatch):
    """The page still thinks that rows are in batches, which are gone."""
    monkeypatch.setattr("termwise.view.browsed.SHARE", 1e9)
    path = made(tmp_path / "out", 200, batch=20, finished=False)
    site = client(path)
    made(path, 200, batch=20)
    assert "100 of 200" in site.get("/").text
    assert "line 41" in site.get("/row/40").text  # its batch is no file any more
    assert "200 of 200" in site.get("/").text


def test_results_that_are_gone_are_missed(tmp_path):
    path = made(tmp_path / "out", 40, batch=20, finished=False)
    site = client(path)
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    answer = site.get("/row/0")
    assert answer.status_code == 503
    assert "The results are gone" in answer.text


def test_results_of_scalars_only(tmp_path):
    site = client(made(tmp_path / "out", 60, batch=20, decomposes=False, verb="faithfulness"))
    page = read(site.get("/?sort=score"))
    assert len(page.rows) == 51
    assert "line 1" not in page.links
    assert ">score</h3>" in site.get("/").text
    for address in ("/row/0", "/row/0/row.safetensors", "/row/0/page.html"):
        assert site.get(address).status_code == 404


def test_a_run_that_has_nothing_yet(tmp_path):
    path = made(tmp_path / "out", 40, batch=20, finished=False)
    for file in (path / "batches").iterdir():
        file.unlink()
    site = client(path)
    assert "There are no rows yet" in site.get("/").text
    for query in (
        "sort=error",
        "text=a",
        "column=error&is=above&value=1",
        "column=key&is=has&value=1",
        "column=error&is=equal&value=nan",
    ):
        assert site.get(f"/?{query}").status_code == 200
    assert site.get("/row/0").status_code == 404


def test_folders_that_hold_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        application(tmp_path)
    made(tmp_path / "out", 10)
    for content in ("{}", "[]", "not json", json.dumps({"format": 1, "decomposes": True})):
        (tmp_path / "out" / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="manifest"):
            application(tmp_path / "out")


def test_columns_that_are_shown_are_those_of_the_run(folder, site):
    heads = re.findall(r'<th scope="col"[^>]*><a [^>]*>(\w+)', site.get("/").text)
    assert set(heads) == {"row", "key", "label", "whole", "error", "cancellation", *SCALARS}
    assert heads[:5] == ["row", "key", "label", "class", "text"]  # texts first


def test_a_row_of_a_data_set_without_labels(tmp_path):
    site = client(made(tmp_path / "out", 5, labels=lambda i: None))
    for page in ("/row/2", "/row/2/page.html"):
        answer = site.get(page)
        assert answer.status_code == 200
        assert "line 3" in answer.text
        assert "the data set says" not in answer.text


def test_long_texts_are_whole_on_their_row_alone(tmp_path):
    long = "a long story " * 1000
    site = client(made(tmp_path / "out", 60, labels=lambda i: f"{i} {long}"))
    first = site.get("/").text
    assert f"7 {long}"[:200] + "…" in first
    assert len(first) < 500_000
    assert f"7 {long}".strip() in site.get("/row/7").text


def test_columns_without_a_cell_are_not_shown(tmp_path):
    text = client(made(tmp_path / "out", 20, batch=10, labels=lambda i: None)).get("/").text
    assert ">label</a>" not in text
    assert ">class</a>" in text


def test_the_mean_of_the_rows_that_were_asked_for(tmp_path):
    path = made(tmp_path / "out", 300, batch=50, bad=(4,))
    results, site = Results(path), client(path)
    frame = results.scalars().to_pandas()
    query = "column=class&is=equal&value=spam&column=count&is=above&value=400"
    places = frame.index[(frame["class"] == "spam") & (frame["count"] > 400)]
    assert 20 < len(places) < 200
    assert read(site.get(f"/?{query}&sort=score")).links["the mean of their parts"] == f"/mean?{query}"
    text = html.unescape(site.get(f"/mean?{query}").text)
    assert f"Mean of {len(places)} rows" in text
    assert "class = spam and count > 400" in text
    rows = re.findall(r"<tr.*?</tr>", text.partition("Means with intervals")[2])
    found = {
        re.sub("<.*?>", "", cells[0]): [float(v) for v in re.findall('data-value="(.*?)"', r)]
        for r in rows
        if (cells := r.split("</td>"))
    }
    for name, values in {
        "whole": [results[int(p)].whole.item() for p in places],
        **{n: [results[int(p)].contribution(n).item() for p in places] for n in ("left", "right")},
    }.items():
        m, half = np.mean(values), 1.96 * np.std(values, ddof=1) / math.sqrt(len(values))
        assert found[name] == pytest.approx([m, m - half, m + half])
    assert site.get("/mean?text=nowhere").status_code == 404
    assert "Mean of 200 rows, evenly spaced among 299" in html.unescape(site.get("/mean").text)
    assert client(made(tmp_path / "plain", 20, batch=10, decomposes=False)).get("/mean").status_code == 404


def test_the_page_of_a_mean_says_what_it_mixes_and_leaves_out(tmp_path, monkeypatch):
    def opened(browsed, place):
        one = torch.ones(1) if place else torch.full((1,), math.nan)
        return Explanation(one, {"input:x": one}, target=torch.tensor([place % 2]))

    monkeypatch.setattr(Browsed, "opened", opened)
    answer = client(made(tmp_path / "out", 20, batch=10)).get("/mean")
    assert "One row holds a number that is not finite, and is left out." in answer.text
    assert "their parts are averaged together: class 1 (10), class 0 (9)." in answer.text
    monkeypatch.setattr(Browsed, "opened", lambda browsed, place: opened(browsed, 0))
    assert client(tmp_path / "out").get("/mean").status_code == 200


def test_a_row_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    site = client(made(tmp_path / "out", 20, batch=10))
    monkeypatch.delitem(Decomposition._classes, "termwise.core.decomposition:Decomposition")
    for address in ("/row/3", "/row/3/page.html", "/row/3/row.safetensors", "/mean"):
        answer = site.get(address)
        assert answer.status_code == 500
        assert "which is not defined here: import its module first" in answer.text
        assert answer.headers["X-Frame-Options"] == "DENY"
    assert site.get("/").status_code == 200
