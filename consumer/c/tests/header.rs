//! overbank.h is what the source says. OVERBANK_WRITE_HEADER=1 writes it.

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};

/// What the functions are about, in the order in which a reader meets it.
const NOUNS: [&str; 6] = ["status", "client", "lease", "lane", "share", "region"];

const ABOUT: &str = "\
/* Overbank: memory on other machines, leased through an auth daemon, reached by one-sided RDMA, sealed before it leaves.
 *
 * Every function returns a status, OVERBANK_OK where it did what it says; overbank_last_error() has the words of a failure.
 * Handles (overbank_client, overbank_lease, ...) are no addresses: one that is used after its end, or in the place of another
 * kind's, is answered with OVERBANK_CLOSED. What is said of threads at a type holds for all functions that take it, unless
 * they say otherwise. docs/c-api.md has more. */";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn made() -> String {
    let mut config = Config {
        language: Language::C,
        cpp_compat: true,
        style: Style::Both,
        usize_is_size_t: true,
        line_length: 120,
        header: Some(ABOUT.to_owned()),
        autogen_warning: Some("/* Made from consumer/c/src by its test `header`: change it there. */".to_owned()),
        include_guard: Some("OVERBANK_H".to_owned()),
        no_includes: true,
        sys_includes: ["stdbool.h", "stddef.h", "stdint.h"].map(str::to_owned).to_vec(),
        documentation_style: DocumentationStyle::Doxy,
        ..Config::default()
    };
    // No function takes them as what they are: a caller may have any number there.
    config.export.include = ["overbank_on_unknown", "overbank_faults"].map(str::to_owned).to_vec();
    let sources = NOUNS.map(|noun| here().join(format!("src/{noun}.rs")));
    let builder = sources.into_iter().fold(Builder::new().with_config(config), Builder::with_src);
    let mut header = Vec::new();
    builder.generate().expect("the source is understood").write(&mut header);
    let header = String::from_utf8(header).expect("text");
    header.replace(" * # Safety\n", " * What you promise:\n").replace(" *\n *\n", " *\n")
}

#[test]
fn the_header_is_what_the_source_says() {
    let path: PathBuf = here().join("overbank.h");
    let made = made();
    if std::env::var_os("OVERBANK_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let held = std::fs::read_to_string(&path).unwrap_or_default();
    let other = made.lines().zip(held.lines()).find(|(made, held)| made != held);
    assert!(
        made == held,
        "consumer/c/overbank.h is not made of this source, first at {other:?}: read what is new, then \
         OVERBANK_WRITE_HEADER=1 cargo test -p overbank-c --test header"
    );
}

#[test]
fn every_function_is_in_the_header() {
    let made = made();
    let mut functions = 0;
    for entry in std::fs::read_dir(here().join("src")).expect("it") {
        let source = std::fs::read_to_string(entry.expect("it").path()).expect("it");
        for line in source.lines().filter(|line| line.starts_with("pub ") && line.contains("extern \"C\" fn ")) {
            let name = line.split("fn ").nth(1).and_then(|rest| rest.split('(').next()).expect("a name");
            assert!(made.contains(&format!("{name}(")), "{name} is not in the header: is its file among NOUNS?");
            functions += 1;
        }
    }
    assert!(functions > 20, "{functions}");
}
