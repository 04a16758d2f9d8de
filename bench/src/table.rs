//! `overbank-bench table`: what the reports in a directory say of the soft device, as Markdown.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::BenchError;
use crate::kept;

/// What `table` takes.
#[derive(clap::Args)]
pub(crate) struct Table {
    /// Where `raw`, `compare` and `throughput` left their reports (--out)
    dir: PathBuf,
}

/// The reports. What is not there is null, and its figures are missing.
struct Reports {
    raw: Value,
    compare: Value,
    throughput: Value,
}

/// In order of their columns.
const LIBRARIES: [(&str, &str); 3] = [
    ("ucx_tcp", "UCX, tcp"),
    ("libfabric_tcp_rxm", "libfabric, tcp;ofi_rxm"),
    ("libfabric_tcp", "libfabric, tcp by itself"),
];
const MISSING: &str = "not measured";

/// Prints the tables.
pub(crate) fn run(table: &Table) -> Result<(), BenchError> {
    let read = |command: &str| kept::value(&table.dir, command).map(|report| report.unwrap_or(Value::Null));
    let compare = by_subject(read("compare")?);
    let reports = Reports { raw: read("raw")?, compare, throughput: read("throughput")? };
    if [&reports.raw, &reports.compare, &reports.throughput].iter().all(|report| report.is_null()) {
        return Err(BenchError::Usage(format!("{} holds no report", table.dir.display())));
    }
    print!("{}", reports.markdown());
    Ok(())
}

/// A report whose results are a list, as one that has them by subject, with our plain operations alone and by the name
/// that they had there. One that is like that is left as it is.
fn by_subject(mut report: Value) -> Value {
    let Some(Value::Object(subjects)) = report.get_mut("subjects").map(Value::take) else { return report };
    let rows = report["results"].as_array().into_iter().flatten();
    let plain: Vec<_> =
        rows.filter(|row| row["system"] == "overbank-raw").filter_map(|row| row["subject"].as_str()).collect();
    let own = |name: &str| {
        let rest = name.strip_prefix("overbank_raw_").filter(|_| plain.contains(&name))?;
        Some(format!("overbank_{rest}"))
    };
    let named = |(name, figures): (String, Value)| {
        let name = if name.starts_with("overbank_") { own(&name)? } else { name };
        Some((name, figures))
    };
    let results: Map<_, _> = subjects.into_iter().filter_map(named).collect();
    report["results"] = Value::Object(results);
    report
}

/// One line of the first table.
struct Claim {
    what: String,
    /// What was found, if it was measured, and whether that is enough.
    found: Option<(String, bool)>,
    asked: &'static str,
}

impl Reports {
    fn markdown(&self) -> String {
        let mut text = self.machine();
        text += "\n| | measured | asked | |\n|---|---|---|---|\n";
        for Claim { what, found, asked } in self.claims() {
            let (figure, verdict) = match found {
                Some((figure, true)) => (figure, "holds"),
                Some((figure, false)) => (figure, "**does not hold**"),
                None => (MISSING.to_owned(), ""),
            };
            text += &format!("| {what} | {figure} | {asked} | {verdict} |\n");
        }
        text + &self.latencies() + &self.rates() + &self.losses()
    }

    fn machine(&self) -> String {
        let mut text = String::new();
        for (command, report) in [("raw", &self.raw), ("compare", &self.compare), ("throughput", &self.throughput)] {
            let machine = &report["machine"];
            let field = |name: &str| machine[name].as_str().unwrap_or("unknown").to_owned();
            if report.is_null() {
                continue;
            }
            let arguments = report["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let arguments: Vec<_> = arguments.take_while(|argument| *argument != "--out").collect();
            text += &format!(
                "- `{command}`: commit {}, {} build, {} rounds, load {} at its end; `overbank-bench {}`\n",
                field("commit"),
                field("build"),
                report["rounds"],
                field("load"),
                arguments.join(" ")
            );
            if command == "raw" {
                text = format!(
                    "{}, {} processors{}, Linux {}, {}\n\n{text}",
                    field("cpu"),
                    machine["cpus"],
                    if machine["virtual_machine"] == true { " (virtual)" } else { "" },
                    field("kernel"),
                    field("system"),
                );
            }
            for warning in report["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                text += &format!("- warning: {warning}\n");
            }
        }
        text
    }

    fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for size in [64, 4096] {
            let (own, floor) = (format!("read_{size}"), format!("udp_read_{size}"));
            claims.push(Claim {
                what: format!("READ of {size} B, one outstanding, beside UDP ping-pong of the same datagrams"),
                found: quotient(p50(&self.raw, &own), p50(&self.raw, &floor))
                    .map(|(own, floor, ratio)| (format!("{own:.2} / {floor:.2} µs = {ratio:.3}"), ratio <= 1.3)),
                asked: "at most 1.3",
            });
        }
        for size in [64, 4096] {
            let own = p50(&self.compare, &format!("overbank_read_{size}"));
            for (library, name) in LIBRARIES {
                let found = quotient(own, p50(&self.compare, &format!("{library}_read_{size}")));
                claims.push(Claim {
                    what: format!("READ of {size} B, one outstanding, beside {name}"),
                    found: found
                        .map(|(own, other, ratio)| (format!("{own:.2} / {other:.2} µs = {ratio:.2}"), ratio < 1.0)),
                    asked: "below 1",
                });
            }
        }
        let deep = |subject: &str, size: usize| find(&self.compare, &format!("{subject}_read_{size}_x"));
        let best = LIBRARIES.iter().filter_map(|(library, name)| Some((gib(deep(library, 65536)?)?, *name)));
        let best = best.max_by(|(a, _), (b, _)| a.total_cmp(b));
        let own = deep("overbank", 65536);
        claims.push(Claim {
            what: "READ of 64 KiB, deep, beside the best of the libraries".to_owned(),
            found: best.and_then(|(other, name)| {
                let (own, other, ratio) = quotient(own.and_then(gib), Some(other))?;
                Some((format!("{own:.2} / {other:.2} GiB/s ({name}) = {ratio:.2}"), ratio > 1.0))
            }),
            asked: "above 1",
        });
        claims.push(Claim {
            what: "of its packets, sent again".to_owned(),
            found: own
                .and_then(|own| own["retransmitted_percent"].as_f64())
                .map(|again| (format!("{again} %"), again < 0.1)),
            asked: "below 0.1 %",
        });
        claims.push(Claim {
            what: "READs of 4 KiB, deep, one queue pair".to_owned(),
            found: find(&self.throughput, "read_4096_x")
                .and_then(|own| own["per_second"].as_u64())
                .map(|each| (format!("{each} a second"), each >= 300_000)),
            asked: "at least 300000 a second",
        });
        for size in [4096, 65536] {
            claims.push(Claim {
                what: format!("READ of {size} B, deep, with 1 % of all datagrams lost, through that with none"),
                found: self.loss_ratio(size, "1%").map(|ratio| (format!("{ratio:.2}"), ratio >= 0.5)),
                asked: "at least 0.5",
            });
        }
        claims
    }

    fn loss_ratio(&self, size: usize, loss: &str) -> Option<f64> {
        let ratios = self.throughput["ratios"].as_object()?;
        let wanted =
            |name: &str| name.starts_with(&format!("read_{size}_x")) && name.contains(&format!("_loss_{loss} "));
        ratios.iter().find(|(name, _)| wanted(name))?.1.as_f64()
    }

    fn latencies(&self) -> String {
        let mut text = "\n| p50 (p99) in µs, one outstanding | Overbank".to_owned();
        text += &columns(|_, name| format!(" | {name}"));
        text += " |\n|---|---";
        text += &columns(|_, _| "|---".to_owned());
        text += "|\n";
        for (own, _) in subjects(&self.compare, "overbank_", "p50_ns") {
            let cell = |subject: &str| {
                let result = &self.compare["results"][format!("{subject}_{own}")];
                match (micros(&result["p50_ns"]), micros(&result["p99_ns"])) {
                    (Some(p50), Some(p99)) => format!("{p50:.2} ({p99:.2})"),
                    _ => MISSING.to_owned(),
                }
            };
            text += &format!("| {} | {}", own.replace('_', " "), cell("overbank"));
            text += &columns(|library, _| format!(" | {}", cell(library)));
            text += " |\n";
        }
        text
    }

    fn rates(&self) -> String {
        let mut text = "\n| operations a second (GiB/s), many outstanding | Overbank".to_owned();
        text += &columns(|_, name| format!(" | {name}"));
        text += " | ours sent again |\n|---|---";
        text += &columns(|_, _| "|---".to_owned());
        text += "|---|\n";
        for (own, result) in subjects(&self.compare, "overbank_", "per_second") {
            let cell = |subject: &str| {
                let result = &self.compare["results"][format!("{subject}_{own}")];
                match (result["per_second"].as_u64(), gib(result)) {
                    (Some(each), Some(gib)) => format!("{each} ({gib:.2})"),
                    _ => MISSING.to_owned(),
                }
            };
            text += &format!("| {} | {}", own.replace('_', " "), cell("overbank"));
            text += &columns(|library, _| format!(" | {}", cell(library)));
            text += &format!(" | {} % |\n", result["retransmitted_percent"]);
        }
        text
    }

    fn losses(&self) -> String {
        let mut text =
            "\n| many outstanding, one queue pair | operations a second | GiB/s | through that without loss | "
                .to_owned();
        text += "sent again | packets an operation | ns a packet |\n|---|---|---|---|---|---|---|\n";
        for (name, result) in subjects(&self.throughput, "", "per_second") {
            let ratio = self.throughput["ratios"].as_object().into_iter().flatten();
            let ratio = ratio
                .filter(|(ratio, _)| ratio.starts_with(&format!("{name} /")))
                .find_map(|(_, ratio)| ratio.as_f64());
            text += &format!(
                "| {} | {} | {} | {} | {} % | {} | {} |\n",
                name.replace("_loss_", ", lost ").replace('_', " "),
                result["per_second"],
                result["gib_per_second"],
                ratio.map_or("1".to_owned(), |ratio| format!("{ratio:.2}")),
                result["retransmitted_percent"],
                result["packets_per_operation"],
                result["nanoseconds_per_packet"],
            );
        }
        text
    }
}

fn columns(cell: impl Fn(&str, &str) -> String) -> String {
    LIBRARIES.iter().map(|(library, name)| cell(library, name)).collect()
}

/// Results whose name has this prefix, which is cut off, and that have this figure.
fn subjects<'a>(report: &'a Value, prefix: &str, figure: &str) -> Vec<(&'a str, &'a Value)> {
    let results = report["results"].as_object().into_iter().flatten();
    let mut subjects: Vec<_> = results
        .filter(|(_, result)| !result[figure].is_null())
        .filter_map(|(name, result)| Some((name.strip_prefix(prefix)?, result)))
        .collect();
    subjects.sort_by_key(|(name, _)| (name.split('_').next().unwrap_or_default(), numbers(name)));
    subjects
}

/// Size, depth and loss of a subject, as far as its name has them: what they are sorted by.
pub(crate) fn numbers(name: &str) -> Vec<u64> {
    let number = |word: &str| word.trim_start_matches('x').trim_end_matches('%').parse::<f64>().ok();
    name.split('_').filter_map(number).map(|number| (number * 10_000.0) as u64).collect()
}

/// The first result whose name begins so, and goes on with a depth alone.
fn find<'a>(report: &'a Value, prefix: &str) -> Option<&'a Value> {
    let mut results = report["results"].as_object()?.iter();
    let depth = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
    results.find(|(name, _)| depth(name)).map(|(_, result)| result)
}

fn micros(nanoseconds: &Value) -> Option<f64> {
    Some(nanoseconds.as_f64()? / 1000.0)
}

fn p50(report: &Value, subject: &str) -> Option<f64> {
    micros(&report["results"][subject]["p50_ns"])
}

fn gib(result: &Value) -> Option<f64> {
    result["gib_per_second"].as_f64()
}

fn quotient(above: Option<f64>, below: Option<f64>) -> Option<(f64, f64, f64)> {
    let (above, below) = (above?, below.filter(|below| *below > 0.0)?);
    Some((above, below, above / below))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reports() -> Reports {
        let rate = |per_second: u64, gib: f64| json!({ "per_second": per_second, "gib_per_second": gib });
        let mut own = rate(60_000, 3.7);
        own["retransmitted_percent"] = json!(0.2);
        Reports {
            raw: json!({
                "machine": { "cpu": "A", "cpus": 2, "kernel": "6", "system": "D", "virtual_machine": true, "commit": "c" },
                "arguments": ["raw", "--with-floor", "--out", "/somewhere"],
                "rounds": 3,
                "warnings": ["this is a debug build"],
                "results": { "read_64": { "p50_ns": 5200 }, "udp_read_64": { "p50_ns": 4000 },
                             "read_4096": { "p50_ns": 6600 }, "udp_read_4096": { "p50_ns": 5000 } },
            }),
            compare: json!({ "results": {
                "overbank_read_64": { "p50_ns": 5200, "p99_ns": 7000 },
                "ucx_tcp_read_64": { "p50_ns": 8000, "p99_ns": 9000 },
                "overbank_read_65536_x32": own,
                "ucx_tcp_read_65536_x32": rate(20_000, 1.2),
                "libfabric_tcp_rxm_read_65536_x32": rate(40_000, 2.5),
            } }),
            throughput: json!({
                "results": { "read_4096_x32": rate(299_999, 1.1), "read_4096_x32_loss_1%": rate(150_000, 0.5) },
                "ratios": { "read_4096_x32_loss_1% / read_4096_x32": 0.5, "read_4096_x32_loss_0.1% / read_4096_x32": 0.9 },
            }),
        }
    }

    #[test]
    fn each_claim_has_its_figure_and_its_verdict() {
        let text = reports().markdown();
        for line in [
            "A, 2 processors (virtual), Linux 6, D",
            "`overbank-bench raw --with-floor`",
            "- warning: this is a debug build",
            "| READ of 64 B, one outstanding, beside UDP ping-pong of the same datagrams | 5.20 / 4.00 µs = 1.300 | at most 1.3 | holds |",
            "same datagrams | 6.60 / 5.00 µs = 1.320 | at most 1.3 | **does not hold** |",
            "| READ of 64 B, one outstanding, beside UCX, tcp | 5.20 / 8.00 µs = 0.65 | below 1 | holds |",
            "| READ of 64 B, one outstanding, beside libfabric, tcp;ofi_rxm | not measured | below 1 |  |",
            "| 3.70 / 2.50 GiB/s (libfabric, tcp;ofi_rxm) = 1.48 | above 1 | holds |",
            "| of its packets, sent again | 0.2 % | below 0.1 % | **does not hold** |",
            "| 299999 a second | at least 300000 a second | **does not hold** |",
            "| READ of 4096 B, deep, with 1 % of all datagrams lost, through that with none | 0.50 | at least 0.5 | holds |",
            "| READ of 65536 B, deep, with 1 % of all datagrams lost, through that with none | not measured |",
            "| read 64 | 5.20 (7.00) | 8.00 (9.00) | not measured | not measured |",
            "| read 65536 x32 | 60000 (3.70) | 20000 (1.20) | 40000 (2.50) | not measured | 0.2 % |",
            "| read 4096 x32, lost 1% | 150000 | 0.5 | 0.50 |",
        ] {
            assert!(text.contains(line), "{line}\n in \n{text}");
        }
    }

    #[test]
    fn a_list_of_results_is_read_like_those_by_subject() {
        let row = |system: &str, subject: &str| json!({ "system": system, "subject": subject });
        let report = json!({
            "rounds": 3,
            "results": [
                row("overbank-raw", "overbank_raw_read_64"),
                row("overbank-raw-stride", "overbank_raw_read_4128"),
                row("overbank-sealed", "overbank_sealed_read_64"),
                row("ucx-tcp", "ucx_tcp_read_64"),
            ],
            "subjects": {
                "overbank_raw_read_64": { "p50_ns": 1 }, "overbank_raw_read_4128": { "p50_ns": 2 },
                "overbank_sealed_read_64": { "p50_ns": 3 }, "ucx_tcp_read_64": { "p50_ns": 4 },
            },
        });
        let report = by_subject(report);
        assert_eq!(
            report["results"],
            json!({ "overbank_read_64": { "p50_ns": 1 }, "ucx_tcp_read_64": { "p50_ns": 4 } })
        );
        assert_eq!(report["rounds"], 3);
        for old in [json!({ "results": { "overbank_read_64": { "p50_ns": 1 } } }), Value::Null] {
            assert_eq!(by_subject(old.clone()), old);
        }
    }

    #[test]
    fn subjects_stand_in_the_order_of_their_numbers() {
        let report = json!({ "results": {
            "read_4096_x32_loss_5%": { "n": 1 }, "read_4096_x32_loss_0.01%": { "n": 1 }, "read_65536_x4": { "n": 1 },
            "read_4096_x32": { "n": 1 }, "read_4096_x4": { "n": 1 }, "write_64": { "n": 1 }, "read_64": { "m": 1 },
        } });
        let names: Vec<_> = subjects(&report, "", "n").into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "read_4096_x4",
                "read_4096_x32",
                "read_4096_x32_loss_0.01%",
                "read_4096_x32_loss_5%",
                "read_65536_x4",
                "write_64"
            ]
        );
    }
}
