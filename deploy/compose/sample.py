"""Pictures for compose.yaml: the demo's four lines, without end. Three of them drift for some minutes in every round.

python sample.py reference FOLDER        pictures of normal production to learn from
python sample.py produce CONFIG          one picture a second and line, in the present
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from monitor.config.loading import load_config
from monitor.demo.story import CALM_S, DRIFT_S, reference, shots, take
from monitor.sources import open_producer
from monitor.sources.protocol import SourceError

REFERENCE_IMAGES = 1000
ROUND_S = CALM_S + DRIFT_S + 180
"""Of the story, which plays at half its speed here: nine minutes of calm and drift, six of recovery."""
SLOWER = 2.0


def write_reference(folder: Path) -> None:
    """Save what the profile is fitted on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in reference(np.random.default_rng(7), REFERENCE_IMAGES):
        (folder / f"{name}.jpg").write_bytes(image)


def produce(config: Path) -> None:
    """Send for ever, round after round."""
    settings = load_config(config)
    source = settings.source_settings()
    topic = source.section.topics[0]
    seed = 0
    with closing(open_producer(source)) as producer:
        while True:
            seed += 1
            rng, began_s = np.random.default_rng(seed), time.monotonic()
            for shot in shots(rng):
                if shot.time_s >= ROUND_S:
                    break
                image = take(rng, shot)
                time.sleep(max(0.0, began_s + shot.time_s * SLOWER - time.monotonic()))
                try:
                    producer.send(topic, image, shot.stream.encode(), [("content-type", b"image/jpeg")])
                    producer.flush()
                except SourceError as error:
                    sys.stderr.write(f"sample: {error}\n")  # the broker is away; the line goes on without a camera


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in {"reference", "produce"}:
        sys.exit(__doc__)
    (write_reference if sys.argv[1] == "reference" else produce)(Path(sys.argv[2]))
