"""The page to play with, in headless Chromium, with a teacher and students of random weights."""

import shutil

import pytest

from splam.config import parse
from splam.profile import compose

pytestmark = pytest.mark.browser
DRAWN = "[...document.images].filter(image => image.src.includes('/file=') && image.naturalWidth >= 256).length"


@pytest.fixture
def app(teacher_folder, tmp_path, monkeypatch):
    """play.app, with one student of each method at w = 3."""
    from play import app

    for name in ("lcm-w3-k20", "splam-w3-k20"):
        shutil.copytree(teacher_folder, tmp_path / name / "pipeline")
    monkeypatch.setattr(app, "TEACHER", teacher_folder)
    monkeypatch.setattr(app, "STUDENTS", tmp_path)
    monkeypatch.setattr(app, "load_params", lambda *_: parse(compose("smoke"), "smoke"))
    return app


def test_the_page_draws_what_is_asked_for_and_asks_no_other_machine(app, tmp_path, chromium):
    params, teacher, folders = app.open_students(tmp_path)
    assert {w: sorted(runs) for w, runs in app.find_students(params, folders).items()} == {3: ["lcm", "splam"]}
    blocks, asked = app.page(params, *app.player(params, teacher, folders)), []
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    page = chromium.new_page()
    page.set_default_timeout(600_000)  # ms: a machine busy with other work
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_label("Caption", exact=True).fill("a dotted red heart on a white background")
    page.get_by_role("button", name="Draw").click()
    page.wait_for_function(f"{DRAWN} === 5")  # three pictures and two strips
    page.wait_for_selector("text=/SPLAM, 4 steps: [0-9.]+ s/")
    page.screenshot(path=app.STUDENTS / "play.png", full_page=True)
    assert [other for other in asked if not other.startswith((url, "data:", "blob:"))] == []
    page.close()
    blocks.close()


def test_without_a_finished_pipeline_it_takes_what_is_shipped(app, monkeypatch, tmp_path):
    for name in ("lcm-w3-k20", "splam-w3-k20"):
        shutil.copytree(tmp_path / name / "pipeline/unet", tmp_path / "shipped" / name)
    monkeypatch.setattr(app, "STUDENTS", tmp_path / "none")
    monkeypatch.setattr(app, "SHIPPED", tmp_path / "shipped")
    _, teacher, folders = app.open_students(tmp_path / "teacher")
    assert sorted(folders) == ["lcm-w3-k20", "splam-w3-k20"] and teacher.latent_shape == (4, 8, 8)


def test_without_any_student_it_says_what_to_run(app, monkeypatch, tmp_path):
    monkeypatch.setattr(app, "STUDENTS", tmp_path / "none")
    monkeypatch.setattr(app, "SHIPPED", tmp_path / "none")
    with pytest.raises(SystemExit, match="run `make repro` first"):
        app.main()
