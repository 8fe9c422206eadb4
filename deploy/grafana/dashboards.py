"""The two dashboards, as code: `python deploy/grafana/dashboards.py` writes the JSON files beside it.

Streams answers on-call's questions from top to bottom: which stream, since when, how bad, sensor or content, which
signals. Operations shows the state of Layerwatch itself. Queries name only metrics of `monitor/telemetry/metrics.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models import heatmap as h
from grafana_foundation_sdk.models import prometheus as p

HERE = Path(__file__).resolve().parent
SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
FLEET = 'monitor=~"$monitor"'
STREAM = 'monitor=~"$monitor",stream=~"$stream"'
RATE = "[$__rate_interval]"
STATUS_PAGE = "${status_page}/streams/${__data.fields.stream:percentencode}"
GREEN, AMBER, RED, GREY, BLUE = "green", "orange", "red", "#8e8e8e", "blue"

Panel = Any  # the builders share no base class


def mine(expression: str) -> str:
    """Only processes of the chosen monitors: a process's own metrics have no label `monitor`."""
    return f"({expression} and on (job, instance) layerwatch_build_info{{{FLEET}}})"


def quantile(q: float, metric: str, by: str) -> str:
    """That quantile of a histogram of this monitor's processes."""
    return f"histogram_quantile({q}, sum by (le, {by}) {mine(f'rate({metric}_bucket{RATE})')})"


BEHIND_S = f"time() - max{mine('layerwatch_watermark_timestamp_seconds > 0')}"


def percentiles(metric: str, by: str, legend: str = "") -> list[tuple[str, str]]:
    """(expression, legend) of the 95th percentile and the median of a histogram."""
    return [(quantile(q, metric, by), f"{legend}p{100 * q:.0f}") for q in (0.95, 0.5)]


def rate(metric: str) -> str:
    """Per second, of a counter of this monitor's processes."""
    return mine(f"rate({metric}{RATE})")


def increase(metric: str) -> str:
    """Over the step of the graph, of a counter of this monitor's processes."""
    return mine(f"increase({metric}{RATE})")


def query(expression: str, legend: str = "", ref: str = "A") -> prometheus.Dataquery:
    """A query over the time range."""
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").range().ref_id(ref)


def now(expression: str, ref: str) -> prometheus.Dataquery:
    """An instant query, as a table."""
    return prometheus.Dataquery().expr(expression).instant().format(p.PromQueryFormat.TABLE).ref_id(ref)


def put(panel: Panel, title: str, description: str, width: int, height: int) -> Panel:
    """What every panel has."""
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def lines(
    title: str, description: str, queries: Sequence[tuple[str, str]], unit: str = "short", width: int = 8
) -> Panel:
    """A time series of several queries, (expression, legend) each."""
    panel = put(timeseries.Panel(), title, description, width, 8).unit(unit).min(0).line_width(1.5).fill_opacity(6)
    panel.show_points(c.VisibilityMode.NEVER)
    panel.legend(common.VizLegendOptions().display_mode(c.LegendDisplayMode.LIST).placement(c.LegendPlacement.BOTTOM))
    panel.tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI).sort(c.SortOrder.DESCENDING))
    for i, (expression, legend) in enumerate(queries):
        panel.with_target(query(expression, legend, chr(ord("A") + i)))
    return panel


def number(
    title: str, description: str, expression: str, steps: Sequence[tuple[float | None, str]], unit: str = "short"
) -> Panel:
    """One big number, coloured by steps."""
    return (
        put(stat.Panel(), title, description, 4, 4)
        .unit(unit)
        .no_value("0")
        .with_target(query(expression))
        .graph_mode(c.BigValueGraphMode.NONE)
        .color_mode(c.BigValueColorMode.VALUE)
        .thresholds(thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def thresholds(steps: Sequence[tuple[float | None, str]]) -> dashboard.ThresholdsConfig:
    """Colours from these values on; the first has None."""
    found = [d.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(found)


def value(name: str, content: object) -> d.DynamicConfigValue:
    """One property of a field override."""
    return d.DynamicConfigValue(id_val=name, value=content)


# ------------------------------------------------------------------------------------------------ streams


def streams_by_trouble() -> Panel:
    """One row per stream, the worst first; states in words."""
    active, other = "layerwatch_alert_active", "0 * layerwatch_stream_images_total"
    state = (
        f'max by (stream) (clamp_max({active}{{{STREAM},phase="firing"}}, 1) * 2'
        f' or clamp_max({active}{{{STREAM},phase="pending"}}, 1) or {other}{{{STREAM}}})'
    )
    words = {"0": ("calm", GREEN, 2), "1": ("pending", AMBER, 1), "2": ("FIRING", RED, 0)}
    mapping = d.ValueMap(
        options={k: d.ValueMappingResult(text=t, color=color, index=i) for k, (t, color, i) in words.items()},
    )
    names = {"stream": "stream", "Value #A": "state", "triage": "looks like", "Value #B": "OOD share"}
    names |= {"Value #C": "normal up to", "Value #D": "since", "Value #F": "images/s"}
    hidden = {"Time": True, "Value #E": True}
    order = ["stream", "Value #A", "triage", "Value #B", "Value #C", "Value #D", "Value #F"]
    links = [
        {"title": "Status page of ${__value.raw}", "url": STATUS_PAGE, "targetBlank": True},
        {
            "title": "This stream alone",
            "url": "/d/layerwatch-streams?var-stream=${__value.raw:percentencode}&${monitor:queryparam}"
            "&${__url_time_range}",
        },
    ]
    return (
        put(
            table.Panel(),
            "Streams by trouble",
            "Firing first, then by how much more than normal is unusual. A click on a stream leads to its status page, "
            "with the images.",
            24,
            9,
        )
        .with_target(now(state, "A"))
        .with_target(now(f'max by (stream) (layerwatch_stream_ood_share{{{STREAM},level="$level"}})', "B"))
        .with_target(now(f'max by (stream) (layerwatch_stream_ood_band{{{STREAM},level="$level",bound="upper"}})', "C"))
        .with_target(now(f"min by (stream) (layerwatch_alert_since_timestamp_seconds{{{STREAM}}}) * 1000", "D"))
        .with_target(now(f"max by (stream, triage) (layerwatch_stream_triage{{{STREAM}}})", "E"))
        .with_target(now(f"sum by (stream) (rate(layerwatch_stream_images_total{{{STREAM}}}{RATE}))", "F"))
        .with_transformation(d.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            d.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": hidden,
                    "renameByName": names,
                    "indexByName": {name: i for i, name in enumerate(order)},
                },
            )
        )
        .sort_by(
            [
                common.TableSortByFieldState().display_name("state").desc(True),
                common.TableSortByFieldState().display_name("OOD share").desc(True),
            ]
        )
        .override_by_name("stream", [value("links", links)])
        .override_by_name("state", [value("mappings", [mapping]), value("custom.cellOptions", {"type": "color-text"})])
        .override_by_name("OOD share", [value("unit", "percentunit"), value("decimals", 1)])
        .override_by_name("normal up to", [value("unit", "percentunit"), value("decimals", 1)])
        .override_by_name("since", [value("unit", "dateTimeFromNow")])
        .override_by_name("images/s", [value("decimals", 2)])
    )


def share_and_band() -> Panel:
    """OOD share of the chosen streams, over the band in which normal ones lie."""
    band = "layerwatch_stream_ood_band"
    panel = lines(
        "OOD share (p ≤ $level) and its normal band",
        "Share of the last five minutes' images that are unusual, the ten highest of the chosen streams; grey: where "
        "it lies at least 99 times in 100 while nothing has changed. Red marks: alerts that fire.",
        [
            (f'topk(10, max by (stream) (layerwatch_stream_ood_share{{{STREAM},level="$level"}}))', "{{stream}}"),
            (f'min({band}{{{STREAM},level="$level",bound="lower"}})', "normal from"),
            (f'max({band}{{{STREAM},level="$level",bound="upper"}})', "normal up to"),
        ],
        "percentunit",
        24,
    )
    grey = {"mode": "fixed", "fixedColor": GREY}
    panel.override_by_name(
        "normal from", [value("color", grey), value("custom.lineWidth", 0), value("custom.fillOpacity", 0)]
    )
    return panel.override_by_name(
        "normal up to",
        [
            value("color", grey),
            value("custom.lineWidth", 0),
            value("custom.fillBelowTo", "normal from"),
            value("custom.fillOpacity", 22),
        ],
    )


def p_value_map(title: str, description: str, expression: str) -> Panel:
    """Heat map of a p-value histogram: uniform in distribution; in drift the low bins fill."""
    return (
        put(heatmap.Panel(), title, description, 12, 9)
        .with_target(query(expression, "{{le}}").format(p.PromQueryFormat.HEATMAP))
        .color(heatmap.HeatmapColorOptions().mode(h.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .calculate(False)
        .show_tooltip()
    )


def effects(title: str, description: str, kind: str) -> Panel:
    """The signals of one kind, or of several (a|b), that moved most."""
    expression = f'topk(12, max by (signal) (layerwatch_stream_signal_effect{{{STREAM},kind=~"{kind}"}}))'
    return (
        put(bargauge.Panel(), title, description, 8, 9)
        .with_target(query(expression, "{{signal}}"))
        .unit("percentunit")
        .min(0)
        .max(1)
        .orientation(c.VizOrientation.HORIZONTAL)
        .thresholds(thresholds([(None, GREEN), (0.1, AMBER), (0.3, RED)]))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def streams() -> dict[str, Any]:
    """Which stream drifted, since when, how much, and what moved."""
    firing = f'sum(layerwatch_alerts{{{FLEET},phase="firing"}}) or vector(0)'
    board = frame("Layerwatch: streams", "layerwatch-streams", "30s", ["layerwatch"])
    board.with_variable(
        dashboard.QueryVariable("stream")
        .label("Stream")
        .datasource(SOURCE)
        .query('label_values(layerwatch_stream_images_total{monitor=~"$monitor"}, stream)')
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(d.VariableOption(text="All", value="$__all"))
    )
    board.with_variable(
        dashboard.QueryVariable("signal")
        .label("Signal")
        .datasource(SOURCE)
        .query('label_values(layerwatch_p_value_bucket{monitor=~"$monitor"}, signal)')
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .current(d.VariableOption(text="ood", value="ood"))
    )
    levels = ("0.05", "0.01")
    board.with_variable(
        dashboard.CustomVariable("level")
        .label("Level")
        .values(", ".join(levels))
        .current(d.VariableOption(text=levels[0], value=levels[0]))
    )
    board.annotation(
        dashboard.AnnotationQuery()
        .name("firing")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(RED)
        .expr(f'layerwatch_alert_active{{{STREAM},phase="firing"}}')
    )
    calm_red: list[tuple[float | None, str]] = [(None, GREEN), (1, RED)]
    for panel in (
        number("Alerts firing", "Over all streams of the chosen monitors.", firing, calm_red),
        number(
            "Pending",
            "Breached, but not for long enough yet.",
            f'sum(layerwatch_alerts{{{FLEET},phase="pending"}}) or vector(0)',
            [(None, GREEN), (1, AMBER)],
        ),
        number(
            "Look like the sensor",
            "Streams with an alert whose exposure, sharpness, colour, ... moved as well: look at the camera first.",
            f'sum(layerwatch_stream_triage{{{STREAM},triage="sensor"}}) or vector(0)',
            [(None, GREEN), (1, AMBER)],
        ),
        number(
            "Look like the content",
            "Streams with an alert where what is shown or its mix has changed, not how: look at the line first.",
            f'sum(layerwatch_stream_triage{{{STREAM},triage=~"content|mix"}}) or vector(0)',
            [(None, GREEN), (1, AMBER)],
        ),
        number("Streams", "Known to the chosen monitors.", f"sum(layerwatch_streams{{{FLEET}}})", [(None, BLUE)]),
        number(
            "Behind the newest image",
            "Age of the event time up to which every partition has been read: alerts cannot be younger.",
            BEHIND_S,
            [(None, GREEN), (120, AMBER), (600, RED)],
            "s",
        ),
        streams_by_trouble(),
        share_and_band(),
        p_value_map(
            "p-values of the OOD score, chosen streams",
            "Each column sums to the images of that moment. In distribution a bin holds its width's share; in drift "
            "the low ones fill.",
            f"sum by (le) (increase(layerwatch_stream_ood_p_value_bucket{{{STREAM}}}{RATE}))",
        ),
        p_value_map(
            "p-values of $signal, all streams",
            "Any signal of the profile: a layer of the backbone or an image property.",
            f'sum by (le) (increase(layerwatch_p_value_bucket{{{FLEET},signal=~"$signal"}}{RATE}))',
        ),
        effects(
            "What the network sees: score, layers and mix",
            "Share of images that must have changed to move the signal so far. Early layers see texture, late ones "
            "objects; where the mix moves alone, single images look normal. The fifty streams with most trouble.",
            "learned|mix",
        ),
        effects(
            "What the sensor shows: image properties",
            "Moved properties mean exposure, focus, colour or noise changed: the camera, the lamp, the lens.",
            "property",
        ),
        lines(
            "Not counted as they should be",
            "Records that could not be used, images that came late, images equal to the one before (a frozen camera).",
            [
                (f"sum(rate(layerwatch_stream_rejected_total{{{STREAM}}}{RATE}))", "rejected"),
                (f"sum(rate(layerwatch_stream_late_total{{{STREAM}}}{RATE}))", "late"),
                (f"sum(rate(layerwatch_stream_duplicates_total{{{STREAM}}}{RATE}))", "identical"),
            ],
            "cps",
        ).height(9),
    ):
        board.with_panel(panel)
    found = encoded(board)
    # the SDK's annotation lacks these fields: how Grafana titles a mark of a Prometheus query
    found["annotations"]["list"][0] |= {
        "titleFormat": "{{rule}} on {{stream}}",
        "textFormat": "{{phase}}",
        "step": "30s",
        "useValueForTime": False,
    }
    return found


# ------------------------------------------------------------------------------------------------ operations


def operations() -> dict[str, Any]:
    """State of Layerwatch itself: processes, lag, stages, queues, Redis, delivery."""
    board = frame("Layerwatch: operations", "layerwatch-operations", "30s", ["layerwatch"])
    build = f"layerwatch_build_info{{{FLEET}}}"
    rejected = rate("layerwatch_records_rejected_total")
    for panel in (
        number("Replicas", "Processes of the chosen monitors.", f"count({build})", [(None, BLUE)]),
        number(
            "Shards judged",
            "Share of the shards that a process judges and delivers: 1, but for some seconds after a crash.",
            f"sum{mine('layerwatch_shards_held')} / max{mine('layerwatch_shards')}",
            [(None, RED), (1, GREEN)],
        ),
        number(
            "Records behind",
            "Sum over all partitions.",
            f"sum{mine('layerwatch_lag_records')}",
            [(None, GREEN), (10_000, AMBER), (100_000, RED)],
        ),
        number(
            "Buckets behind",
            "How far the oldest bucket that should be judged lies behind.",
            f"max(layerwatch_bucket_lag_seconds{{{FLEET}}})",
            [(None, GREEN), (60, AMBER), (300, RED)],
            "s",
        ),
        number(
            "Oldest undelivered alert",
            "Over all receivers.",
            f"max(layerwatch_outbox_age_seconds{{{FLEET}}}) or vector(0)",
            [(None, GREEN), (120, AMBER), (600, RED)],
            "s",
        ),
        number(
            "Partitions stopped",
            "Not read until an operator acts.",
            f"sum{mine('layerwatch_partitions_stopped')}",
            [(None, GREEN), (1, RED)],
        ),
        lines(
            "Images counted",
            "By process.",
            [(f"sum by (instance) {rate('layerwatch_images_applied_total')}", "{{instance}}")],
            "cps",
        ),
        lines(
            "Records behind the end of the log",
            "By partition, the twenty worst.",
            [(f"topk(20, sum by (topic, partition) {mine('layerwatch_lag_records')})", "{{topic}}:{{partition}}")],
        ),
        lines(
            "Behind in time",
            "The watermark behind the clock, and the oldest bucket that is due behind the watermark.",
            [
                (BEHIND_S, "watermark"),
                (f"max(layerwatch_bucket_lag_seconds{{{FLEET}}})", "bucket due"),
            ],
            "s",
        ),
        lines(
            "Stages, 95th percentile",
            "Decode is one record, score one batch, apply one round trip to Redis.",
            percentiles("layerwatch_stage_seconds", "stage", "{{stage}} "),
            "s",
        ),
        lines(
            "Images per batch",
            "Full batches keep an accelerator busy.",
            [
                (
                    f"sum by (instance) {rate('layerwatch_batch_images_sum')} / "
                    f"sum by (instance) {rate('layerwatch_batch_images_count')}",
                    "{{instance}}",
                )
            ],
        ),
        lines(
            "Judging a bucket",
            "Time to judge one closed bucket, all streams and rules.",
            percentiles("layerwatch_evaluation_seconds", "job"),
            "s",
        ),
        lines(
            "Queue between poll and apply",
            "Polling pauses at the limit, resumes at half of it.",
            [
                (f"sum by (instance) {mine('layerwatch_queue_bytes')}", "{{instance}}"),
                (f"max{mine('layerwatch_queue_limit_bytes')}", "limit"),
            ],
            "bytes",
        ),
        lines(
            "Memory",
            "Of the processes, and of their accelerators.",
            [
                (f"sum by (instance) {mine('process_resident_memory_bytes')}", "{{instance}}"),
                (f"sum by (instance, device) {mine(DEVICE_MEMORY)}", "{{instance}} {{device}}"),
            ],
            "bytes",
        ),
        lines(
            "Replicas",
            "Partitions that each process reads.",
            [(f"sum by (instance) {mine('layerwatch_partitions_owned')}", "{{instance}}")],
        ),
        lines(
            "Redis, 95th percentile",
            "Round trips by script; `read` is everything else.",
            [(quantile(0.95, "layerwatch_redis_seconds", "call"), "{{call}}")],
            "s",
        ),
        lines(
            "Redis calls and failures",
            "A refusal carries its code: OOM means full, READONLY a replica, MISCONF a full disk.",
            [
                (f"sum{rate('layerwatch_redis_seconds_count')}", "round trips"),
                (f"sum{rate('layerwatch_redis_errors_total')}", "errors"),
                (
                    f"sum by (code) {rate('layerwatch_redis_refusals_total')} or vector(0)",
                    "{{code}} refused",
                ),
            ],
            "cps",
        ),
        lines(
            "Trouble with the source",
            "Clients that were rebuilt, batches whose status is not ok, records that retention removed unread.",
            [
                (f"sum{rate('layerwatch_source_rebuilds_total')}", "clients rebuilt"),
                (f"sum by (status) {mine(APPLIES_ODD)} or vector(0)", "apply {{status}}"),
                (f"sum{rate('layerwatch_gap_records_total')}", "records lost to retention"),
            ],
            "cps",
        ),
        lines(
            "Dead letters",
            "Records that could not be used, by reason; tries to write them or verdicts that failed: reading waits.",
            [
                (f"sum by (reason) {rejected} or vector(0)", "{{reason}}"),
                (f"sum{rate('layerwatch_dead_letter_errors_total')}", "not writable"),
                (f"sum{rate('layerwatch_verdict_errors_total')}", "verdicts not writable"),
            ],
            "cps",
        ),
        lines(
            "Outbox",
            "Alerts that wait for each receiver, and those that were given up.",
            [
                (f"max by (receiver) (layerwatch_outbox_entries{{{FLEET}}})", "{{receiver}} waiting"),
                (f"max by (receiver) (layerwatch_dead_alerts{{{FLEET}}})", "{{receiver}} given up"),
            ],
        ),
        lines(
            "Deliveries",
            "Attempts by receiver and outcome.",
            [
                (
                    f"sum by (receiver, outcome) {increase('layerwatch_deliveries_total')}",
                    "{{receiver}} {{outcome}}",
                )
            ],
        ),
        lines(
            "Alerts changing",
            "Changes of phase by rule: a rule that flaps needs `keep_firing_for` or a new calibration.",
            [
                (
                    f"sum by (rule, phase) {increase('layerwatch_alert_transitions_total')}",
                    "{{rule}} {{phase}}",
                )
            ],
        ),
        versions_table(),
    ):
        board.with_panel(panel)
    return encoded(board)


DEVICE_MEMORY = 'layerwatch_device_memory_bytes{kind="used"}'
APPLIES_ODD = f'rate(layerwatch_applies_total{{status!="ok"}}{RATE})'


def versions_table() -> Panel:
    """What runs where."""
    names = {"instance": "process", "fingerprint": "profile", "detector": "detector", "backbone": "backbone"}
    return (
        put(table.Panel(), "Profiles loaded", "All replicas of a monitor must have loaded the same.", 16, 8)
        .with_target(now(f"max by (instance, fingerprint, detector, backbone) {mine('layerwatch_profile_info')}", "A"))
        .with_target(now(f"max by (instance, version, monitor) (layerwatch_build_info{{{FLEET}}})", "B"))
        .with_transformation(d.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            d.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True, "Value #A": True, "Value #B": True}, "renameByName": names},
            )
        )
    )


# ------------------------------------------------------------------------------------------------ frame


def frame(title: str, uid: str, refresh: str, tags: list[str]) -> dashboard.Dashboard:
    """Title, times, links and the variables that both dashboards have."""
    board = dashboard.Dashboard(title).uid(uid).tags(tags).refresh(refresh).time("now-3h", "now").timezone("browser")
    board.tooltip(d.DashboardCursorSync.CROSSHAIR).editable()
    board.link(
        dashboard.DashboardLink("Dashboards")
        .type(d.DashboardLinkType.DASHBOARDS)
        .tags(["layerwatch"])
        .include_vars(True)
        .keep_time(True)
        .as_dropdown(False)
    )
    board.link(
        dashboard.DashboardLink("Status page").type(d.DashboardLinkType.LINK).url("${status_page}").target_blank(True)
    )
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    board.with_variable(
        dashboard.QueryVariable("monitor")
        .label("Monitor")
        .datasource(SOURCE)
        .query("label_values(layerwatch_build_info, monitor)")
        .refresh(d.VariableRefresh.ON_DASHBOARD_LOAD)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(d.VariableOption(text="All", value="$__all"))
    )
    # address of the status page, from each monitor's own metric (web.external_url)
    return board.with_variable(
        dashboard.QueryVariable("status_page")
        .label("Status page")
        .hide(d.VariableHide.HIDE_VARIABLE)
        .datasource(SOURCE)
        .query('label_values(layerwatch_build_info{monitor=~"$monitor"}, status_page)')
        .refresh(d.VariableRefresh.ON_DASHBOARD_LOAD)
    )


def encoded(board: dashboard.Dashboard) -> dict[str, Any]:
    """As plain JSON."""
    found: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(board.build()))
    for i, panel in enumerate(found["panels"], 1):
        panel["id"] = i
    return found


def files() -> dict[Path, str]:
    """{file: what it must hold}."""
    made = {"streams.json": streams(), "operations.json": operations()}
    return {HERE / name: json.dumps(board, indent=1, sort_keys=True) + "\n" for name, board in made.items()}


def main() -> int:
    """Write the files."""
    for path, text in files().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
