"""Pages that recipes write, as a test reads them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The cells of the rows of a page, and what it would load from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.images, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(attributes["src"])
        assert tag not in ("script", "link", "b"), "escaped, and of its own"

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
