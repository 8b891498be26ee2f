"""The page of examples/browser in a headless Chromium: its students answer as the runtime for devices does."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tokenizers import Tokenizer

from lightning_distilbert import DistillationModule, QuestionAnswering, Student
from lightning_distilbert.deploy import export, runtime
from lightning_distilbert.deploy.manifest import write_manifest
from lightning_distilbert.report.bootstrap import Difference
from lightning_distilbert.report.plots import COLOURS
from tests.comparisons import comparison, measured
from tests.conftest import save_tiny_bert
from tests.students import FILMS, save_classifier

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).resolve().parents[2] / "examples" / "browser"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH, and CHROMIUM is unset"),
    pytest.mark.skipif(not (PAGE / "node_modules").is_dir(), reason="examples/browser has no node_modules: npm ci"),
]

LONG = "the old house was made by the man. " * 12
TEXTS = [
    *FILMS[::5], "The GOOD film, was great!", "caf\u00e9 cafe\u0301 \u00c9t\u00e9", "  spaces\tand\nlines  ", LONG,
    "unknownwordthatisverylong \u4e2d\u6587 \U0001f600!", "a [SEP] in the [MASK] text",
    "\u0130stanbul \u039f\u0394\u039f\u03a3 \u00df \ufb01 \u00bd",
]  # fmt: skip
QUESTIONS = [
    ("who made the house?", "The house was made by the old man of the city, and the tree was in the water."),
    ("what time is it?", LONG + "It is late in the city. " + LONG),
    ("who?", "caf\u00e9 \U0001f600 by the cafe\u0301 man, \u4e2d\u6587 city"),
    ("where was the small dog in the old city?", "<img src=x onerror=alert(1)> the dog <b>was</b> in the [SEP] city"),
    ("what " * 30, "the man in the city. " * 9),
    ("how long is the film?", "a"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an exported classifier, and an exported reader that leaves half of `QUESTIONS` without an answer."""
    place = tmp_path_factory.mktemp("students")
    task = QuestionAnswering(no_answer=True, max_answer_length=4, doc_stride=8, max_question_length=20)
    source = save_tiny_bert(place / "reader-teacher", spans=True)
    reader = DistillationModule(task, student=Student(source=str(source), layers=2))
    folder = export(reader, place / "reader", "onnx-int8", min_retention=0).folder
    artefact = runtime.load(folder)
    for threshold in (step / 50 for step in range(-250, 251)):
        artefact.thresholds = {"no_answer": threshold}
        answers = artefact.predict(QUESTIONS, batch_size=1)
        if sum(bool(answer["answer"]) for answer in answers) == len(answers) // 2:
            break
    else:
        raise AssertionError("no threshold parts the questions")
    config = json.loads((folder / "config.json").read_text())
    config["lightning_distilbert"]["thresholds"] = {"no_answer": threshold}
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    student = save_classifier(place / "film")
    return {
        "reader": folder,
        "classifier": export(student, place / "classifier", "onnx-int8", min_retention=0).folder,
    }


@contextmanager
def serving(**folders: Path) -> Iterator[str]:
    """Serve the page, and yield its address."""
    options = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
    command = [sys.executable, str(PAGE / "serve.py"), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(folders: dict[str, Path]) -> Iterator[str]:
    with serving(**folders) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not run as root, which containers are
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    """Return the page, loaded; it has asked nobody but its server, and no script has failed."""
    asked, failed = [], []
    opened = browser.new_page()
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto(address)
    for role in ("classifier", "reader"):
        opened.locator(f"#{role}[data-shown]").wait_for()
    yield opened
    opened.close()
    assert failed == []
    assert any(url.endswith("model_int8.onnx") for url in asked)
    assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []


def settle(page: Any, role: str, change: Callable[[], None]) -> Any:
    """Change something, wait until its result is shown, and return the pane."""
    before = int(page.locator(f"#{role}").get_attribute("data-shown"))
    change()
    pane = page.locator(f"#{role}[data-shown]:not([data-shown='{before}']):not(.stale)")
    pane.wait_for()
    assert pane.locator(".error").is_hidden(), pane.locator(".error").inner_text()
    return pane


def ask(page: Any, question: str, context: str) -> dict[str, Any]:
    """Return the answer that the page shows, its place in characters as Python counts them."""
    # emptied first, so that no field keeps the value that it had
    settle(page, "reader", lambda: page.fill("#reader-question", ""))
    settle(page, "reader", lambda: page.fill("#reader-text", context))
    pane = settle(page, "reader", lambda: page.fill("#reader-question", question))
    head = pane.locator(".answer")
    start = head.get_attribute("data-start")
    if start is None:
        assert head.inner_text().startswith("No answer")
        return {"answer": "", "score": float(head.get_attribute("data-score")), "start": None, "note": ""}
    units = context.encode("utf-16-le")[: 2 * int(start)]
    return {
        "answer": pane.locator("mark").text_content(),
        "score": float(head.get_attribute("data-score")),
        "start": len(units.decode("utf-16-le")),
        "note": pane.locator(".note").inner_text(),
        "passage": pane.locator(".passage").text_content(),
    }


def test_texts_are_classified_as_by_the_runtime(page: Any, folders: dict[str, Path]):
    artefact = runtime.load(folders["classifier"])
    seen = set()
    for text in TEXTS:
        settle(page, "classifier", lambda: page.fill("#classifier-text", ""))
        pane = settle(page, "classifier", lambda text=text: page.fill("#classifier-text", text))
        wanted = artefact.classify(text)
        found = pane.locator("li.chosen")
        assert found.locator(".label").inner_text() == wanted["label"], text
        assert float(found.get_attribute("data-score")) == pytest.approx(wanted["score"], abs=1e-2), text
        assert pane.locator(".ms").inner_text().split()[1] == "ms"
        assert ("the first were read" in pane.inner_text()) == (text == LONG)
        seen.add(wanted["label"])
    assert seen == {"good", "bad"}
    assert " MB · 8 bits · " in page.locator("#classifier .facts").inner_text()
    assert "median of" in page.locator("#classifier .ms").inner_text()


def test_questions_are_answered_as_by_the_runtime(page: Any, folders: dict[str, Path]):
    artefact = runtime.load(folders["reader"])
    answers = []
    for question, context in QUESTIONS:
        # windows by themselves, as in the page: what is measured at run time depends on the batch
        wanted = artefact.answer(question, context, batch_size=1)
        found = ask(page, question, context)
        assert found["answer"] == wanted["answer"], question
        assert found["start"] == wanted["start"]
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-2)
        if found["answer"]:
            assert found["passage"] == context if len(context) < 600 else found["passage"].strip("\u2026") in context
        answers.append(found)
    assert {bool(found["answer"]) for found in answers} == {True, False}
    read = ask(page, *QUESTIONS[1]) if answers[1]["answer"] else next(found for found in answers if found["answer"])
    assert "window" in read["note"]


def test_what_is_typed_is_text_alone(page: Any):
    markup = "the <img src=x onerror=alert(1)> dog <b>was</b> in the city"
    answers = (ask(page, question, markup) for question in ("who", "where", "what", "when", "how", "a dog", "the city"))
    found = next(found for found in answers if found["answer"])
    assert found["passage"] == markup
    assert page.locator(".found img, .found b").count() == 0


def test_tokens_stand_where_tokenizers_says(page: Any, folders: dict[str, Path]):
    odd = ["", " ", "\u0301", "a\u0300\u0301b \u200b\u00adc", "x" * 101]
    texts = [*TEXTS, *(context for _, context in QUESTIONS), *odd]
    found = page.evaluate(
        """async (texts) => {
            const library = "/node_modules/@huggingface/transformers/dist/transformers.min.js";
            const { AutoTokenizer, env } = await import(library);
            const { split } = await import("/tokens.js");
            Object.assign(env, { allowLocalModels: true, allowRemoteModels: false, useBrowserCache: false });
            env.localModelPath = "/models/";
            const tokenizer = await AutoTokenizer.from_pretrained("classifier");
            return texts.map((text) => split(tokenizer, text));
        }""",
        texts,
    )
    backend = Tokenizer.from_file(str(folders["classifier"] / "tokenizer.json"))
    backend.no_truncation()
    for text, row in zip(texts, found, strict=True):
        wanted = backend.encode(text, add_special_tokens=False)
        units = [len(text[:place].encode("utf-16-le")) // 2 for place in range(len(text) + 1)]
        assert row["ids"] == wanted.ids, text
        assert row["places"] == [[units[begin], units[end]] for begin, end in wanted.offsets], text


@pytest.mark.parametrize("context", [QUESTIONS[1][1], "the man in the city"], ids=["windows", "one window"])
def test_of_many_questions_at_once_the_last_is_answered(page: Any, folders: dict[str, Path], context: str):
    ask(page, "who?", context)
    shown = page.evaluate("""() => {
        window.shown = [];
        window.observer?.disconnect();
        window.observer = new MutationObserver((changes) => {
            for (const change of changes) window.shown.push(change.target.dataset.shown);
        });
        window.observer.observe(document.querySelector("#reader"), { attributeFilter: ["data-shown"] });
        return Number(document.querySelector("#reader").dataset.shown);
    }""")
    page.evaluate("""() => {
        const field = document.querySelector("#reader-question");
        for (const word of ["what", "where", "when", "who made", "which", "how", "who was the man"]) {
            field.value = word;
            field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
        }
    }""")
    page.locator(f"#reader[data-shown='{shown + 7}']:not(.stale)").wait_for()
    assert page.evaluate("window.shown") == [str(shown + 7)]
    wanted = runtime.load(folders["reader"]).answer("who was the man", context, batch_size=1)
    head = page.locator("#reader .answer")
    assert float(head.get_attribute("data-score")) == pytest.approx(wanted["score"], abs=1e-2)


def test_a_student_does_one_thing_at_a_time_and_stops_at_a_newer_question(page: Any):
    answered = page.evaluate(
        """(text) => new Promise((resolve, reject) => {
            const worker = new Worker("/worker.js", { type: "module" }), answered = [];
            worker.onerror = reject;
            worker.onmessage = ({ data }) => {
                if (data.error) reject(new Error(data.error));
                if (data.ready) for (const id of [1, 2, 3, 4]) worker.postMessage({ id, question: "who?", text });
                if (data.id) answered.push(data.id);
                if (data.id === 4) setTimeout(() => { worker.terminate(); resolve(answered); }, 500);
            };
            worker.postMessage({ load: "reader" });
        })""",
        QUESTIONS[1][1],
    )
    assert answered == [4]


def test_keys_alone_are_enough(page: Any):
    page.locator("#classifier-text").focus()
    page.keyboard.press("Control+A")
    settle(page, "classifier", lambda: page.keyboard.type("a good film"))
    assert page.input_value("#classifier-text") == "a good film"
    reached = []
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["reader-text", "reader-question"]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_at_any_width(browser: Any, address: str, width: int):
    opened = browser.new_page(viewport={"width": width, "height": 800})
    opened.goto(address)
    opened.locator("#reader[data-shown]").wait_for()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()


# -- the page of a comparison --

LOOK = """() => {
    const light = (colour) => {
        const [red, green, blue] = colour.match(/[0-9.]+/g).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const clear = (colour) => /^rgba.* 0\\)$/.test(colour);
    const behind = (element) => {
        while (clear(getComputedStyle(element).backgroundColor)) element = element.parentElement;
        return getComputedStyle(element).backgroundColor;
    };
    const written = [...document.body.querySelectorAll("*")].filter((element) => element.tagName !== "title"
        && [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    const texts = written.map((element) => {
        const style = getComputedStyle(element), drawn = element.closest("svg") !== null;
        const pair = [drawn ? style.fill : style.color, behind(element)];
        const [low, high] = pair.map(light).sort((one, other) => one - other);
        return { text: element.textContent, pair, drawn, contrast: (high + 0.05) / (low + 0.05) };
    });
    const plots = [...document.querySelectorAll("svg")].map((plot) => {
        const { left, right, height } = plot.getBoundingClientRect();
        const parts = [...plot.querySelectorAll("text, .mark")].map((part) => part.getBoundingClientRect());
        const inside = parts.every((part) => part.width > 0 && part.left >= left - 1 && part.right <= right + 1);
        return { left, right, height, parts: parts.length, inside, visible: plot.checkVisibility() };
    });
    return { texts, plots, page: getComputedStyle(document.body).backgroundColor,
             width: document.documentElement.scrollWidth };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_is_readable_in_light_and_dark_and_fits_a_phone(browser: Any, scheme: str, width: int):
    gap = Difference(-0.02, -0.03, -0.01, 0.002)
    others = [measured(f"student {i}", 0.9 - i / 100, gap, size_mb=90.0 - 10 * i) for i in range(1, COLOURS)]
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.set_content(comparison(measured("teacher", 0.9), *others).to_html())
    seen = opened.evaluate(LOOK)
    opened.close()
    assert (seen["page"] == "rgb(255, 255, 255)") == (scheme == "light")
    assert seen["width"] <= width
    assert len({text["pair"][0] for text in seen["texts"] if text["drawn"]}) > COLOURS
    assert [text for text in seen["texts"] if text["contrast"] < 4.5] == []
    assert len(seen["plots"]) == 4
    for plot in seen["plots"]:
        assert (plot["visible"], plot["inside"]) == (True, True), plot
        assert plot["parts"] > COLOURS, plot
        assert plot["height"] > 150, plot
        assert plot["left"] > 0
        assert plot["right"] - plot["left"] >= 460, plot  # narrower, its letters are too small: on a phone one scrolls
        assert plot["right"] <= width or width < 500, plot


# -- what can go wrong --


@pytest.fixture
def complaint(browser: Any) -> Iterator[Callable[..., str]]:
    """Return a function that opens the page and returns the error that a pane shows."""
    opened = []

    def read(address: str, role: str, missing: str | None = None) -> str:
        page = browser.new_page()
        opened.append(page)
        if missing:
            page.context.route(missing, lambda route: route.fulfill(status=404, body=""))
        page.goto(address)
        place = page.locator(f"#{role} .error:not([hidden])")
        place.wait_for()
        assert page.locator(f"#{role} .loading").is_hidden()
        return str(place.inner_text())

    yield read
    for page in opened:
        page.close()


def spoil(folder: Path, target: Path, **facts: Any) -> Path:
    """Copy an artefact with other facts, or with half its model."""
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    if not facts:
        model = target / manifest["model"]
        model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    write_manifest(target, manifest | facts)
    return target


def test_errors_are_shown(complaint: Callable[..., str], folders: dict[str, Path], tmp_path: Path):
    with serving(classifier=folders["classifier"]) as url:
        assert "No reader is served here" in complaint(url, "reader")
        assert complaint(url, "classifier", missing="**/*.wasm")
        assert "worker did not start" in complaint(url, "classifier", missing="**/transformers.min.js")
    swapped = {"classifier": folders["reader"], "reader": spoil(folders["reader"], tmp_path / "half")}
    with serving(**swapped) as url:
        assert "is of QuestionAnswering" in complaint(url, "classifier")
        assert complaint(url, "reader")
    other = spoil(folders["classifier"], tmp_path / "other", model="model.pte")
    with serving(classifier=other) as url:
        assert "model.pte is no ONNX file" in complaint(url, "classifier")


def test_the_server_gives_its_own_files_alone(address: str, folders: dict[str, Path]):
    (folders["classifier"].parent / "secret").write_text("secret")
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    answers = {}
    inside = ["/", "/models/classifier/config.json"]
    outside = ["/models/classifier/../secret", "/models/classifier/..%2fsecret", "/models/classifier/%2e%2e",
               "/../../pyproject.toml", "/node_modules/", "/models/"]  # fmt: skip
    for path in [*inside, *outside]:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        answers[path] = response.status
        assert response.getheader("Cross-Origin-Opener-Policy") == "same-origin"
    connection.close()
    assert answers == dict.fromkeys(inside, 200) | dict.fromkeys(outside, 404)


@pytest.mark.parametrize(("options", "message"), [
    (["--classifier", "nowhere"], "no manifest.json"), (["--port", "70000"], "--port 70000: "),
])  # fmt: skip
def test_the_server_refuses_what_it_cannot_serve(options: list[str], message: str, tmp_path: Path):
    command = [sys.executable, str(PAGE / "serve.py"), *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
