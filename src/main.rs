use std::process::ExitCode;

fn main() -> ExitCode {
    weftc::cli::main()
}
