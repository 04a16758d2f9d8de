//! Many operations at once, for a moment: that the figures and the counts are there, and what happens when they cannot be.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overbank-bench"));
    command.arg("throughput").args(["--device", "soft"]).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const SHORT: [&str; 7] = ["--rounds", "2", "--count", "500", "--warmup-seconds", "0.01", "--json"];

#[test]
fn both_ends_are_counted_in_every_round() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().to_str().expect("UTF-8");
    let mut arguments =
        vec!["--op", "read,write", "--size", "1,20000", "--depth", "1,16", "--lanes", "2", "--out", out];
    arguments.extend(SHORT);
    let report = report(&run(&arguments));
    let results = report["results"].as_object().expect("results");
    assert_eq!(results.len(), 8);
    for (name, figures) in results {
        assert!(figures["per_second"].as_u64().expect("a number") > 0, "{name}");
        let rounds = figures["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.len(), 2, "{name}");
        let mut packets = 0;
        for round in rounds {
            let number = |value: &serde_json::Value| value.as_u64().expect("a number");
            let operations = number(&round["operations_in_all"]);
            assert!(500 <= number(&round["operations"]) && number(&round["operations"]) <= operations, "{name}");
            let (asker, answerer) = (number(&round["asker"]["sent"]), number(&round["answerer"]["sent"]));
            // A READ is answered by as many packets as its bytes need, of 8192; a WRITE is sent as so many.
            let pieces = if name.contains("20000") { 3 } else { 1 };
            let carrier = if name.starts_with("read") { answerer } else { asker };
            assert!(carrier >= operations * pieces, "{name}: {carrier} packets for {operations} operations");
            assert!(asker > 0 && answerer > 0, "{name}");
            packets += asker + answerer;
        }
        assert_eq!(figures["packets"].as_u64(), Some(packets), "{name}");
    }
    let kept = std::fs::read(dir.path().join("throughput.json")).expect("kept");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&kept).expect("JSON"), report);
    assert!(!dir.path().join("throughput.hlog").exists(), "there are no times to keep");
}

#[test]
fn what_is_lost_is_sent_again_and_compared_with_no_loss() {
    let mut arguments = vec!["--op", "read", "--size", "20000", "--loss", "2"];
    arguments.extend(SHORT);
    let report = report(&run(&arguments));
    let results = &report["results"];
    let again = |name: &str| results[name]["retransmitted"].as_u64().expect("a number");
    assert!(again("read_20000_x32_loss_2%") > 10, "{results}");
    for round in results["read_20000_x32_loss_2%"]["rounds"].as_array().expect("rounds") {
        for end in ["asker", "answerer"] {
            assert!(round[end]["dropped"]["lost on purpose"].as_u64() > Some(0), "{end}: {round}");
        }
    }
    let ratio = report["ratios"]["read_20000_x32_loss_2% / read_20000_x32"].as_f64().expect("a ratio");
    assert!(ratio > 0.0, "{ratio}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, said) in [
        (&["--size", "0"][..], "--size is 1 to"),
        (&["--size", "8388609"], "--size is 1 to"),
        (&["--depth", "0"], "--depth is 1 to"),
        (&["--depth", "4097"], "--depth is 1 to"),
        (&["--size", "8388608", "--depth", "4096"], "bytes outstanding are more"),
        (&["--lanes", "0"], "0 is not in 1..=64"),
        (&["--loss", "-1"], "unexpected argument"),
        (&["--loss=-1"], "--loss is 0 to"),
        (&["--loss", "51"], "--loss is 0 to"),
        (&["--loss", "nan"], "--loss is 0 to"),
        (&["--seconds", "0"], "--seconds 0.001 to"),
        (&["--seconds", "inf"], "--seconds 0.001 to"),
        (&["--warmup-seconds", "nan"], "--warmup-seconds is"),
        (&["--count", "0"], "--count at least 1"),
        (&["--count", "1", "--seconds", "1"], "cannot be used with"),
        (&["--rounds", "0"], "--rounds is at least 1"),
        (&["--op", "send"], "invalid value 'send'"),
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn an_answering_process_that_is_lost_ends_the_measurement() {
    let mut asker = command(&["--seconds", "60", "--size", "64"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    let answerer = wait_for(Duration::from_secs(20), || child_of(&asker));
    // It says where it is reached before it can be asked anything; then it is in the middle of its turn.
    std::thread::sleep(Duration::from_millis(700));
    let killed = Command::new("kill").args(["-KILL", &answerer.to_string()]).status().expect("kill runs");
    assert!(killed.success());
    let status = wait_for(Duration::from_secs(20), || asker.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut asker.stderr.take().expect("piped"), &mut said).expect("UTF-8");
    assert!(said.contains("ended as 12") || said.contains("did not answer"), "{said}");
}

fn wait_for<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "nothing within {time:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn child_of(parent: &Child) -> Option<u32> {
    let path = format!("/proc/{0}/task/{0}/children", parent.id());
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

#[test]
fn sealed_reads_stand_beside_plain_ones_of_their_bytes_and_beside_opening() {
    let mut arguments = vec!["--size", "512,65536", "--depth", "4", "--lanes", "2", "--sealed"];
    arguments.extend(SHORT);
    let report = report(&run(&arguments));
    let results = report["results"].as_object().expect("results");
    for name in
        ["sealed_read_512_x4x2", "raw_read_544_x4x2", "open_512", "sealed_read_65536_x4x2", "raw_read_65568_x4x2"]
    {
        assert!(results[name]["per_second"].as_u64().expect("a number") > 0, "{name}");
    }
    let ratio = "sealed_read_512_x4x2 / (1 / (1/raw_read_544_x4x2 + 1/open_512))";
    assert!(report["ratios"][ratio].as_f64().expect("a ratio") > 0.0, "{report}");
    let refused = run(&["--size", "100", "--sealed", "--rounds", "1", "--count", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not 100"));
}
