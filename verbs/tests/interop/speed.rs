//! What moves in a second between the two, and what is sent again. It says, and does not judge.

use std::time::Instant;

use overbank_verbs::Op;

use crate::ends::*;

/// A full queue of requests of one length, again and again.
fn speed(scene: &Scene, asker: Asker, op: Op, len: usize) {
    let (a, b) = scene.pair(asker, REMOTE, PATIENT);
    let (near, far) = (memory(len, 1), memory(len, 2));
    let (mr, remote) = (a.register(&near, ALL), b.register(&far, ALL));
    let depth = ((4 << 20) / len).clamp(2, SEND_QUEUE);
    let batch: Vec<_> = (0..depth).map(|at| request((at as u64, op), &mr, 0..len, &remote, 0)).collect();
    let rounds = ((8 << 20) / (len * depth)).clamp(2, 20);
    a.run_all(&batch);
    let begun = Instant::now();
    for _ in 0..rounds {
        a.run_all(&batch);
    }
    let took = begun.elapsed();
    let moved = (rounds * depth * len) as f64 / (1 << 20) as f64;
    let each = took.as_secs_f64() * 1e6 / (rounds * depth) as f64;
    println!(
        "{asker:?} asks, {op:?} of {len:>7} bytes, {depth:>2} at once: {:>6.1} MiB/s, {each:>8.0} µs each",
        moved / took.as_secs_f64(),
    );
}

#[test]
#[ignore = "measures, and proves nothing"]
fn every_kind() {
    let Some(scene) = scene() else { return };
    for asker in BOTH {
        for op in [Op::Read, Op::Write] {
            for len in [64, 4096, 65_536, 1 << 20] {
                speed(&scene, asker, op, len);
            }
        }
        scene.report(&format!("all of these, {asker:?} asks"));
    }
}
