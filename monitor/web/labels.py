"""The texts of the pages: states, times, signals, and what to do. Pure."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from datetime import UTC, datetime

from monitor.core.types import share_in_words
from monitor.fleet.images import BoxJson
from monitor.web.answers import AlertJson

SIGNALS = {
    "ood": "the picture as a whole",
    "luma_p1": "how dark the dark parts are",
    "luma_p50": "brightness",
    "luma_p99": "how bright the bright parts are",
    "clipped_low": "pure black",
    "clipped_high": "blown-out white",
    "contrast": "contrast",
    "sharpness": "sharpness",
    "entropy": "detail",
    "saturation": "strength of colour",
    "red_ratio": "red tint",
    "blue_ratio": "blue tint",
    "noise": "noise",
    "row_jump": "torn or shifted rows",
    "width": "width",
    "height": "height",
    "aspect_ratio": "shape of the frame",
    "bytes_per_pixel": "file size per pixel",
    "seen": "how much it resembles a learned image",
}
DRIFT = ("sequential", "rate", "shift")
STATES = {"rejected": "undecodable images", "frozen": "picture is frozen", "silence": "no images"}
CAUSES = {"rejected images": "rejected", "identical images": "frozen", "silence": "silence"}
"""Kind of a rule that is no longer configured, by the cause that its alert names; of all others `sequential`."""
TRIAGE = {
    "sensor": "Looks like the sensor: the pictures themselves changed (light, focus, lens, colour).",
    "content": "Looks like the content: the pictures are fine, what they show is new.",
    "mix": "Looks like the content: the mix changed, single images look normal.",
    "replay": "Looks like a recording played again: these are images that the profile was fitted on.",
}
ADVICE = {
    "sensor": "Look at the camera: clean the lens, check focus, exposure and light.",
    "content": "Look at what is in front of the camera. If it is here to stay, fit a new profile that knows it.",
    "mix": "Look at what is in front of the camera: one kind comes more or less often than it did. "
    "If that is here to stay, calibrate or fit again.",
    "replay": "Check what feeds this stream: a recording is played where the camera's own pictures should arrive.",
    "rejected": "Read the dead-letter topic: each record there names its reason. Then check what encodes the images.",
    "frozen": "The same picture arrives again and again: restart the camera or its encoder.",
    "silence": "Nothing arrives: check the camera, its network and the producer.",
    "": "Compare its images with what the stream usually shows.",
}
THIRDS = (1 / 3, 2 / 3)
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000


def state(alert: AlertJson) -> str:
    """State of the stream of an alert: `drifting`, `may be drifting`, `picture is frozen`."""
    pending = alert.phase == "pending"
    if alert.kind in DRIFT:
        return "may be drifting" if pending else "drifting"
    text = STATES.get(alert.kind, alert.rule)
    return f"{text}?" if pending else text


def advice(alert: AlertJson, triage: str | None = None) -> str:
    """The first thing to do."""
    return ADVICE.get(alert.kind) or ADVICE.get(triage or "") or ADVICE[""]


def severity(alert: AlertJson) -> str:
    """The share of drifted images in words; empty where the rule has none."""
    if alert.severity is None or alert.kind not in DRIFT:
        return ""
    return share_in_words((alert.severity.lower, alert.severity.estimate, alert.severity.upper), alert.cause)


def signal(name: str) -> str:
    """Meaning of a signal: `layer3` is `layer 3 of the network`."""
    if name.startswith("layer") and name[5:].isdigit():
        return f"layer {name[5:]} of the network"
    if name.startswith("mix") and name[3:].isdigit():
        return f"mix of images, direction {name[3:]}"
    return SIGNALS.get(name, name)


def duration(ms: int) -> str:
    """`40 s`, `18 min`, `2 h 5 min`, `3 days`."""
    if ms < MINUTE_MS:
        return f"{max(0, ms) // 1000} s"
    if ms < HOUR_MS:
        return f"{ms // MINUTE_MS} min"
    if ms < 2 * DAY_MS:
        hours, rest = divmod(ms, HOUR_MS)
        return f"{hours} h {rest // MINUTE_MS} min" if rest >= MINUTE_MS else f"{hours} h"
    return f"{ms // DAY_MS} days"


def moment(time_ms: int) -> str:
    """`24 Nov 10:02:30`, UTC (the pages say so once)."""
    then = datetime.fromtimestamp(time_ms / 1000, UTC)
    return f"{then.day} {then:%b %H:%M:%S}"


def clock(time_ms: int) -> str:
    """`10:02:30`, UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%H:%M:%S}"


def percent(share: float | None) -> str:
    """`4.2 %`; above a tenth without decimals."""
    if share is None:
        return "-"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def shortened(text: str, longest: int = 120) -> str:
    """A long text without its middle: the length of stream names is not limited."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … {text[-half:]}"


def where(boxes: Sequence[BoxJson] | None) -> str:
    """Where the hottest of the boxes lies: `upper left`, `middle`, `no single place`; empty for None."""
    if boxes is None:
        return ""
    if not boxes:
        return "no single place"
    box = boxes[0]
    row = ROWS[bisect(THIRDS, box.y + box.height / 2)]
    column = COLUMNS[bisect(THIRDS, box.x + box.width / 2)]
    return {"middle centre": "middle", "upper centre": "top", "lower centre": "bottom"}.get(
        f"{row} {column}", column if row == "middle" else f"{row} {column}"
    )


KINDS = {"expected": "Expected change", "fault": "Real fault", "withdrawn": "withdrawn"}
"""What people say of alerts and images."""
