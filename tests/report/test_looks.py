"""Pages and pictures of predictions and evaluations say what they were given."""

import html.parser
import re

import numpy as np
import pytest
from matplotlib import image as images

from g16net.report import heatmap, mistakes

pytestmark = pytest.mark.once


def text_of(path):
    """The page's texts, as a browser would show them; tags have to close."""
    parts, opened = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "br"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

        def handle_data(self, data):
            parts.append(data)

    with open(path, encoding="utf-8") as file:
        Parser().feed(file.read())
    assert not opened
    return " | ".join(parts)


def test_heat_colours_the_place_where_it_is(tmp_path):
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8))
    heat[:2, 6:] = 3.0  # top right
    seen = heatmap.overlay(image, heat)
    assert seen[0, 7, 0] > 110 > 60 > seen[0, 7, 2]  # red
    np.testing.assert_array_equal(seen[4:], image[4:])
    np.testing.assert_array_equal(heatmap.overlay(image, 0 * heat), image)
    path = heatmap.draw(image, heat, str(tmp_path / "a.png"))
    picture = images.imread(path)
    assert picture.shape[:2] == (224, 448)
    np.testing.assert_array_equal(np.rint(255 * picture[::28, 224::28, :3]), seen)


def test_names_of_pictures_are_each_there_once():
    names = heatmap.Names()
    given = ["a/x.jpg", "b/x.png", "a/x-2.jpg", "X.gif", "b/y.tar.jpg"]
    assert [names(name) for name in given] == ["x.png", "x-2.png", "x-2-2.png", "X-3.png", "y.tar.png"]


def test_the_page_of_few_classes_shows_the_whole_matrix(tmp_path):
    names = ["ant", "<b>bee", "cat"]
    matrix = np.array([[7, 3, 0], [0, 5, 0], [0, 0, 0]])
    worst = [
        {"image": np.zeros((8, 8, 3), np.uint8), "file": "x/a&b.jpg", "true": "ant", "predicted": "<b>bee",
         "probability": 0.97}
    ]  # fmt: skip
    path = mistakes.write(str(tmp_path / "page.html"), ["80 % right", "a network"], names, matrix, worst)
    text = text_of(path)
    assert "ant taken for <b>bee, 97 %" in text and "x/a&b.jpg" in text
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", open(path, encoding="utf-8").read().partition("<tbody>")[2])
    counts = [[int(n or 0) for n in re.findall(r">(\d*)</td>", cells)] for _, cells in rows[:3]]
    assert counts == matrix.tolist()
    assert "http" not in open(path, encoding="utf-8").read()
    nothing = mistakes.write(str(tmp_path / "right.html"), ["all right"], names, np.diag([1, 2, 3]), [])
    assert "None: every image" in text_of(nothing)


def test_the_page_of_many_classes_shows_the_most_confused_pairs(tmp_path):
    names = [f"class {i}" for i in range(1000)]
    matrix = 50 * np.eye(1000, dtype=int)
    matrix[3, 9], matrix[700, 2], matrix[5, 5], matrix[5, 6] = 40, 20, 0, 50
    assert mistakes.confused(names, matrix) == [
        ["class 5", "class 6", 50, 1.0],
        ["class 3", "class 9", 40, 40 / 90],
        ["class 700", "class 2", 20, 20 / 70],
    ]
    path = mistakes.write(str(tmp_path / "page.html"), ["right"], names, matrix, [])
    text = text_of(path)
    assert "The 3 most confused pairs of 1,000 classes" in text and len(text) < 20000
    classes = text.partition("Class by class")[2]
    assert "class 6 (50)" in classes
    assert classes.index("class 5 ") < classes.index("class 3 ") < classes.index("class 700 ")


def test_classes_without_images_or_predictions_have_no_figures():
    rows = mistakes.by_class(["a", "b", "c"], np.array([[2, 2, 0], [0, 4, 0], [0, 0, 0]]))
    assert rows == [["a", 4, 0.5, 1.0], ["b", 4, 1.0, 4 / 6], ["c", 0, "", ""]]
