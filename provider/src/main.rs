//! `overbank-provider`: see [`overbank_provider`].

fn main() -> std::process::ExitCode {
    overbank_provider::cli::main()
}
