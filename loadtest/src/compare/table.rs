//! A comparison as Markdown.

use std::fmt::Write;

use super::roles::ROLES;
use super::{Footprint, Medians, Outcome, Ratio, RowOutcome, errors, median};
use crate::histogram::Summary;
use crate::measure::IDLE_WATCHES;
use crate::report::Report;
use crate::watch;

/// The whole comparison.
pub fn markdown(outcome: &Outcome) -> String {
    let mut text = String::new();
    let [a, b] = &outcome.sides;
    let Outcome { cpus, members, keys, value_bytes, .. } = outcome;
    push(&mut text, format_args!("{} ({}) against {} ({})", a.name, a.version, b.name, b.version));
    push(&mut text, format_args!("{members} members each, {keys} keys, values of {value_bytes} bytes, {cpus} CPUs\n"));
    let (a, b) = (&a.name, &b.name);
    push(
        &mut text,
        format_args!(
            "| row | {a} ops/s | {b} ops/s | ratio (min..max) | p50 ms {a} / {b} | p99 ms {a} / {b} \
         | server CPU µs/op {a} / {b} | ratio of these | client CPU µs/op {a} / {b} |"
        ),
    );
    push(&mut text, format_args!("|---|--:|--:|--:|--:|--:|--:|--:|--:|"));
    outcome.rows.iter().for_each(|row| push(&mut text, format_args!("{}", line(row))));
    push(
        &mut text,
        format_args!("\nRatios above 1 are in favour of {a}: of throughput, or of median latency where it says p50."),
    );
    about_roles(&mut text, outcome);
    about_footprints(&mut text, outcome);
    about_watches(&mut text, outcome);
    about_expiry(&mut text, outcome);
    notes(&mut text, outcome);
    text
}

fn line(row: &RowOutcome) -> String {
    let [a, b] = &row.medians;
    let pair = |figure: fn(&Medians) -> f64, digits: usize| match figure(a).is_nan() && figure(b).is_nan() {
        true => "–".to_owned(),
        false => format!("{:.digits$} / {:.digits$}", figure(a), figure(b)),
    };
    let cpu_ratio = match row.server_cpu_ratio.median {
        ratio if ratio.is_nan() => "–".to_owned(),
        ratio => format!("{ratio:.2}"),
    };
    format!(
        "| {} | {} | {} | {:.2} ({:.2}..{:.2}){} | {} | {} | {} | {} | {} |",
        row.row,
        rate(a.operations_per_second),
        rate(b.operations_per_second),
        row.ratio.median,
        row.ratio.min,
        row.ratio.max,
        row.yardstick.note(),
        pair(|medians| medians.p50_us / 1e3, 2),
        pair(|medians| medians.p99_us / 1e3, 2),
        pair(|medians| medians.server_cpu_us_per_operation, 1),
        cpu_ratio,
        pair(|medians| medians.client_cpu_us_per_operation, 1),
    )
}

/// Operations per second; few of them with a digit more.
fn rate(per_second: f64) -> String {
    match per_second < 100.0 {
        true => format!("{per_second:.1}"),
        false => format!("{per_second:.0}"),
    }
}

/// Where the servers' CPU time goes, of a side whose threads tell.
fn about_roles(text: &mut String, outcome: &Outcome) {
    for (number, side) in outcome.sides.iter().enumerate() {
        let of = |row: &RowOutcome, role| row.medians[number].server_cpu_us_by_role.get(role).copied();
        let told: Vec<_> =
            ROLES.into_iter().filter(|&role| outcome.rows.iter().any(|row| of(row, role).is_some())).collect();
        if told.len() < 2 {
            continue;
        }
        push(text, format_args!("\n| server CPU µs/op of {} | {} |", side.name, told.join(" | ")));
        push(text, format_args!("|---|{}", "--:|".repeat(told.len())));
        for row in outcome.rows.iter().filter(|row| !row.medians[number].server_cpu_us_by_role.is_empty()) {
            let cells: Vec<_> = told.iter().map(|&role| format!("{:.1}", of(row, role).unwrap_or(0.0))).collect();
            push(text, format_args!("| {} | {} |", row.row, cells.join(" | ")));
        }
    }
}

/// With fewer keys, in millions, memory and disk are mostly what an empty server takes: no figure for a million follows.
const MILLIONS_MIN: f64 = 0.1;

/// Memory and disk of a member, as they are and for each million of keys.
fn about_footprints(text: &mut String, outcome: &Outcome) {
    let [a, b] = [&outcome.sides[0], &outcome.sides[1]];
    let millions = outcome.keys as f64 / 1e6;
    push(
        text,
        format_args!(
            "\n| per member | {} | {} | ratio | per million keys |\n|---|--:|--:|--:|--:|\n\
             | keys loaded per second (cluster) | {:.0} | {:.0} | {:.2} | |",
            a.name,
            b.name,
            a.load_puts_per_second,
            b.load_puts_per_second,
            a.load_puts_per_second / b.load_puts_per_second
        ),
    );
    let mut footprint = |name: &str, of: [Option<u64>; 2]| {
        let [Some(x), Some(y)] = of else { return };
        let [x, y] = [x, y].map(|bytes| bytes as f64 / f64::from(1 << 20) / outcome.members as f64);
        let per_million = match millions >= MILLIONS_MIN {
            true => format!("{:.0} / {:.0} MiB", x / millions, y / millions),
            false => "–".to_owned(),
        };
        push(text, format_args!("| {name} | {x:.0} MiB | {y:.0} MiB | {:.2} | {per_million} |", x / y));
    };
    let memory = |of: Footprint| of.resident_bytes;
    let disk = |of: Footprint| of.disk_bytes;
    footprint("memory after loading", [a, b].map(|side| Some(memory(side.loaded))));
    footprint("memory at the end", [a, b].map(|side| Some(memory(side.end))));
    footprint("memory after restarts", [a, b].map(|side| side.restarted.map(memory)));
    footprint("disk after loading", [a, b].map(|side| Some(disk(side.loaded))));
    footprint("disk at the end", [a, b].map(|side| Some(disk(side.end))));
    footprint("disk after restarts", [a, b].map(|side| side.restarted.map(disk)));
}

/// What a row means that is about watches, and what watches cost that see nothing.
fn about_watches(text: &mut String, outcome: &Outcome) {
    for row in &outcome.rows {
        if let Some(Report { watching: Some(watching), rate, .. }) = row.rounds.first().map(|[a, _]| a) {
            let (shape, pace) = (watching.shape, watch::pace(&watching.shape, *rate));
            push(text, format_args!("\n{}: events delivered; {shape}; {pace}", row.row));
            for (number, side) in outcome.sides.iter().enumerate() {
                push(text, format_args!("- {}: {}", side.name, puts(row, number)));
            }
        }
        if let Some(clients) = row.row.strip_prefix("put-idle-watchers:")
            && let Some(without) = outcome.rows.iter().find(|other| other.row == format!("put:{clients}"))
        {
            for (number, side) in outcome.sides.iter().enumerate() {
                let rounds = row.rounds.iter().zip(&without.rounds);
                let ratios = rounds
                    .map(|(with, without)| with[number].operations_per_second / without[number].operations_per_second);
                let Ratio { median, min, max } = Ratio::of(ratios.collect());
                let (name, idle) = (&side.name, IDLE_WATCHES);
                push(
                    text,
                    format_args!(
                        "\n{name}: put:{clients} with {idle} idle watches {median:.2} ({min:.2}..{max:.2}) of without"
                    ),
                );
            }
        }
    }
}

/// What puts feel of leases that expire.
fn about_expiry(text: &mut String, outcome: &Outcome) {
    for row in &outcome.rows {
        for (number, side) in outcome.sides.iter().enumerate() {
            let expired = row.rounds.iter().filter_map(|round| round[number].expired);
            let (leases, keys, latest) = expired.fold((0, 0, 0.0_f64), |(leases, keys, latest), one| {
                (leases + one.leases, keys + one.keys, latest.max(one.latest_ms))
            });
            if leases == 0 {
                continue;
            }
            let figures = |figure: fn(&Summary) -> f64| {
                let of = |kind| move |round: &[Report; 2]| round[number].kinds.get(kind).map_or(f64::NAN, figure);
                let [with, without] = ["put", "put-without"].map(|kind| row.rounds.iter().map(of(kind)));
                let Ratio { median: middle, min, max } =
                    Ratio::of(with.clone().zip(without.clone()).map(|(with, without)| with / without).collect());
                let [with, without] = [with.collect(), without.collect()].map(|all| median(all) / 1e3);
                format!("{with:.2} ms, without {without:.2} ms: {middle:.2} ({min:.2}..{max:.2})")
            };
            let (p50, p99) = (figures(|puts| puts.p50_us), figures(|puts| puts.p99_us));
            push(
                text,
                format_args!(
                    "\n{} on {}: {leases} leases with {keys} keys expired, at most {latest:.0} ms late\n\
                     - p50 of puts beside them {p50}\n- p99 of puts beside them {p99}",
                    row.row, side.name
                ),
            );
        }
    }
}

/// The puts behind a row's events, on one side.
fn puts(row: &RowOutcome, side: usize) -> String {
    let of = |figure: fn(&Report) -> Option<f64>| {
        median(row.rounds.iter().filter_map(|round| figure(&round[side])).collect())
    };
    let rate = of(|report| Some(report.watching?.puts_per_second));
    let p50 = of(|report| Some(report.kinds.get("put")?.p50_us / 1e3));
    let p99 = of(|report| Some(report.kinds.get("put")?.p99_us / 1e3));
    format!("{rate:.0} puts/s, their p50 {p50:.2} ms, p99 {p99:.2} ms")
}

/// What must not be hidden behind a median.
fn notes(text: &mut String, outcome: &Outcome) {
    for row in &outcome.rows {
        for (number, side) in outcome.sides.iter().enumerate() {
            for (error, count) in errors(row, number) {
                push(text, format_args!("\n{} on {}: {count} operations failed: {error}", row.row, side.name));
            }
            let unfinished: u64 = row.rounds.iter().map(|round| round[number].unfinished).sum();
            if unfinished > 0 {
                push(text, format_args!("\n{} on {}: {unfinished} clients never got an answer", row.row, side.name));
            }
        }
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string never fails");
}
