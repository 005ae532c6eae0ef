//! `zea`, the command line. Everything is in the library.

fn main() -> std::process::ExitCode {
    zea_cli::main()
}
