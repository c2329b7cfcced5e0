//! The `seedring` program: arguments in, an exit code out.

fn main() -> std::process::ExitCode {
    seedring::cli::main().into()
}
