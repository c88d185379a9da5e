"""Heat over images, such as Grad-CAM's: a picture of each, and a page with all of them."""

import os
from urllib.parse import quote

import numpy as np

from g16net.report import markup

OPACITY = 0.65  # of the colour where heat is highest
LEAST = 224  # pixels: smaller images are enlarged in whole steps


def overlay(image, heat):
    """uint8 [height, width, 3]: the image in grey, coloured by `heat` [height, width], 0 and above, up to its maximum.

    Nothing is coloured where heat is 0 everywhere.
    """
    from matplotlib import cm

    heat = np.asarray(heat, np.float64)
    heat = heat / (heat.max() or 1.0)
    grey = np.repeat(image.astype(np.float64) @ [[0.299], [0.587], [0.114]], 3, axis=-1)
    colour = 255 * cm.turbo(heat)[..., :3]
    share = OPACITY * heat[..., None]
    return np.rint((1 - share) * grey + share * colour).astype(np.uint8)


def draw(image, heat, path):
    """Draws the uint8 image, and beside it its `overlay`, to the PNG `path`. Returns the path."""
    from matplotlib import image as images

    pair = np.concatenate([image, overlay(image, heat)], axis=1)
    times = -(-LEAST // len(image))
    images.imsave(path, pair.repeat(times, axis=0).repeat(times, axis=1))
    return path


class Names:
    """File names for pictures of images, each once, also where upper and lower case are the same."""

    def __init__(self):
        self.taken = set()

    def __call__(self, image):
        """`photo.png` for `folder/photo.jpg`, `photo-2.png` for the next of that name."""
        stem, number = os.path.splitext(os.path.basename(image))[0], 1
        name = stem
        while name.lower() in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name.lower())
        return f"{name}.png"


def write(rows, folder, title):
    """Writes `folder/index.html` with the pictures that lie in `folder`. Returns its path.

    `rows`: (name of the picture, lines of text to read below it).
    """
    intro = (
        "<p>Left the image as the network gets it, right where its last feature map speaks for the class it names "
        "(Grad-CAM): from blue over green to red, each image up to its own maximum. What stays grey did not count, or "
        "spoke against it; an image without colour has no place that spoke for it.</p>"
    )
    pictures = "".join(markup.picture(quote(name), lines[0], *lines) for name, lines in rows)
    body = f"<h1>{markup.text(title)}</h1>{intro}<div class=pictures>{pictures}</div>"
    return markup.write(os.path.join(folder, "index.html"), title, body)
