use super::*;

/// A log of `count` records with a checkpoint after every third.
fn log(signer: &Identity, count: u64) -> Vec<Line> {
    let mut hash = Hash::genesis();
    let mut lines = Vec::new();
    for seq in 1..=count {
        let record = record(seq);
        hash = hash.next(&record);
        lines.push(Line::Record(Box::new(Hashed { record, hash })));
        if seq % 3 == 0 {
            lines.push(Line::Checkpoint(Checkpoint::new(seq, hash, 1000 + seq, signer)));
        }
    }
    lines
}

fn record(seq: u64) -> Record {
    Record {
        seq,
        unix_ms: 1000 + seq,
        event: "granted".to_owned(),
        outcome: "done".to_owned(),
        who: Some(Fingerprint([7; 20])),
        role: Some(Role::Consumer),
        from: Some("127.0.0.1:7".to_owned()),
        correlation: Some(CorrelationId([1; 8])),
        lease: Some(LeaseId([2; 16])),
        tenant: Some("blue".parse().expect("a name")),
        target: None,
        detail: "8 MiB".to_owned(),
    }
}

fn verify(signer: &Identity, lines: &[Line], witness: &[Checkpoint]) -> Result<Verified, AuditError> {
    let mut verifier = Verifier::new(signer.public().fingerprint());
    witness.iter().try_for_each(|head| verifier.witness(head))?;
    lines.iter().try_for_each(|line| verifier.line(line))?;
    verifier.finish(None)
}

fn hashed(line: &mut Line) -> &mut Hashed {
    match line {
        Line::Record(hashed) => hashed,
        Line::Checkpoint(_) => panic!("a checkpoint"),
    }
}

fn head(lines: &[Line]) -> (u64, Hash) {
    let records = lines.iter().filter_map(|line| match line {
        Line::Record(hashed) => Some((hashed.record.seq, hashed.hash)),
        Line::Checkpoint(_) => None,
    });
    records.fold(None, |_, record| Some(record)).expect("a record")
}

#[test]
fn a_whole_log_holds_and_says_how_far_it_is_signed() {
    let signer = Identity::generate();
    let lines = log(&signer, 7);
    let seen = Checkpoint::new(
        5,
        {
            let mut lines = lines.clone();
            hashed(&mut lines[5]).hash
        },
        1,
        &signer,
    );
    let verified = verify(&signer, &lines, &[seen]).expect("it holds");
    assert_eq!((verified.first, verified.last, verified.signed), (1, 7, 6));
    assert_eq!((verified.checkpoints, verified.witnessed, verified.earlier), (2, 1, 0));
    assert!(verify(&signer, &[], &[]).is_ok_and(|empty| empty.last == 0));
}

#[test]
fn every_change_of_every_record_is_found() {
    let signer = Identity::generate();
    let lines = log(&signer, 6);
    let changes: [fn(&mut Record); 8] = [
        |it| it.unix_ms += 1,
        |it| it.event = "released".to_owned(),
        |it| it.outcome = "quota".to_owned(),
        |it| it.who = None,
        |it| it.from = Some("127.0.0.1:8".to_owned()),
        |it| it.lease = Some(LeaseId([3; 16])),
        |it| it.tenant = None,
        |it| it.detail.push('!'),
    ];
    for at in [0, 1, 2, 4, 5, 6] {
        for change in changes {
            let mut edited = lines.clone();
            change(&mut hashed(&mut edited[at]).record);
            assert!(matches!(verify(&signer, &edited, &[]), Err(AuditError::Edited { .. })), "{at}");
        }
    }
}

#[test]
fn a_chain_hashed_anew_contradicts_its_signatures() {
    let signer = Identity::generate();
    let lines = log(&signer, 6);
    let mut forged = lines.clone();
    hashed(&mut forged[1]).record.detail = "nothing".to_owned();
    let mut hash = Hash::genesis();
    for line in &mut forged {
        if let Line::Record(it) = line {
            hash = hash.next(&it.record);
            it.hash = hash;
        }
    }
    assert_eq!(verify(&signer, &forged, &[]), Err(AuditError::Forked { seq: 3 }));
    // Signed by another key, or with the signatures left out: the last is for the witness to find.
    let other = Identity::generate();
    for line in &mut forged {
        if let Line::Checkpoint(it) = line {
            let seq = it.seq;
            *it = Checkpoint::new(seq, it.hash, 0, &other);
        }
    }
    assert!(matches!(verify(&signer, &forged, &[]), Err(AuditError::Signature { seq: 3, .. })));
    forged.retain(|line| matches!(line, Line::Record(_)));
    assert!(verify(&signer, &forged, &[]).is_ok_and(|it| it.signed == 0));
    let (seq, hash) = head(&lines);
    let seen = Checkpoint::new(seq, hash, 0, &signer);
    assert_eq!(verify(&signer, &forged, &[seen]), Err(AuditError::Forked { seq: 6 }));
}

#[test]
fn records_that_are_missing_are_missed() {
    let signer = Identity::generate();
    let lines = log(&signer, 8);
    for gone in 0..lines.len() - 1 {
        let mut less = lines.clone();
        less.remove(gone);
        let found = verify(&signer, &less, &[]);
        match &lines[gone] {
            Line::Record(_) => assert!(found.is_err(), "{gone}"),
            Line::Checkpoint(_) => assert!(found.is_ok(), "{gone}"),
        }
    }
    // The end: found by who saw more.
    let (seq, hash) = head(&lines);
    let seen = [Checkpoint::new(seq, hash, 0, &signer)];
    for kept in 1..lines.len() {
        let found = verify(&signer, &lines[..kept], &seen);
        assert_eq!(found, Err(AuditError::Truncated { last: head(&lines[..kept]).0, seen: 8 }), "{kept}");
    }
    assert!(verify(&signer, &lines, &seen).is_ok());
    let mut verifier = Verifier::new(signer.public().fingerprint());
    lines[..4].iter().for_each(|line| verifier.line(line).expect("whole so far"));
    assert_eq!(verifier.finish(Some(&seen[0])), Err(AuditError::Truncated { last: 3, seen: 8 }));
}

#[test]
fn a_log_without_its_beginning_needs_a_signature_in_its_place() {
    let signer = Identity::generate();
    let lines = log(&signer, 8);
    // Lines: 1 2 3 C 4 5 6 C 7 8.
    assert_eq!(verify(&signer, &lines[4..], &[]), Err(AuditError::NoBeginning { first: 4 }));
    let at = |index: usize| {
        let mut lines = lines.clone();
        hashed(&mut lines[index]).hash
    };
    let seen = [Checkpoint::new(2, at(1), 0, &signer), Checkpoint::new(5, at(5), 0, &signer)];
    let verified = verify(&signer, &lines[3..], &seen).expect("it holds");
    assert_eq!((verified.first, verified.last, verified.witnessed, verified.earlier), (4, 8, 1, 1));
    let other = [Checkpoint::new(3, at(1), 0, &signer)];
    assert_eq!(verify(&signer, &lines[3..], &other), Err(AuditError::Forked { seq: 3 }));
}

#[test]
fn two_histories_under_one_signature_are_a_fork() {
    let signer = Identity::generate();
    let lines = log(&signer, 4);
    let (seq, hash) = head(&lines);
    let heads = [Checkpoint::new(seq, hash, 0, &signer), Checkpoint::new(seq, Hash([1; 32]), 0, &signer)];
    assert_eq!(verify(&signer, &lines, &heads), Err(AuditError::Forked { seq: 4 }));
}

#[test]
fn lines_survive_json_and_cbor() {
    let signer = Identity::generate();
    for line in log(&signer, 3) {
        let json = serde_json::to_string(&line).expect("text");
        assert!(!json.contains('['), "names are text: {json}");
        assert_eq!(serde_json::from_str::<Line>(&json).expect("the same"), line);
        assert_eq!(crate::signed::from_cbor::<Line>(&to_cbor(&line)), Ok(line));
    }
    assert!(serde_json::from_str::<Line>(r#"{"record":{}}"#).is_err());
    assert!(serde_json::from_str::<Line>(r#"{"checkpoint":{"authd":"00"}}"#).is_err());
}
