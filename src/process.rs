//! The life of a process: arguments, logs, signals, and the error message it ends with.

use std::any::TypeId;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::cause::Cause;
use crate::shutdown::{self, Shutdown};
use crate::telemetry;

/// The arguments that a process gives to the `run` of its role.
#[derive(Debug)]
pub struct Process {
    /// The metrics to serve.
    pub metrics: PrometheusHandle,
    /// When to stop.
    pub shutdown: Shutdown,
}

#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments<C: Args> {
    #[command(flatten)]
    config: C,
    #[command(flatten, next_help_heading = "Logs")]
    telemetry: telemetry::TelemetryConfig,
}

/// Runs a program: reads its configuration from arguments and environment, starts its logs and an event loop,
/// and runs it. A failure is printed as one sentence. The exit status is 0 for a requested stop, 1 for a
/// failure, 2 for an invalid configuration, and that of an [`ExitError`].
///
/// Each role has its own `main` that calls this in the library and not in the binary, so the generic code is
/// compiled once.
pub fn main<C: Args>(
    name: &'static str,
    about: &'static str,
    run: impl AsyncFnOnce(C, Process) -> anyhow::Result<()>,
) -> ExitCode {
    main_checked(name, about, |_| Ok(()), run)
}

/// The same for a program of several commands: without one, it runs the command `default`.
pub fn main_of_commands<C: Args>(
    name: &'static str,
    about: &'static str,
    default: &str,
    run: impl AsyncFnOnce(C, Process) -> anyhow::Result<()>,
) -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let first = arguments.get(1).map(|first| first.to_string_lossy());
    let has_command = first.is_some_and(|first| {
        !first.starts_with('-') || ["-h", "--help", "-V", "--version"].contains(&&*first)
    });
    if !has_command {
        arguments.insert(1.min(arguments.len()), default.into());
    }
    start(parse::<C>(name, about, arguments.into_iter()), name, run)
}

/// The same for a program whose values can be valid one by one but not together: `check` returns a sentence
/// that says what is wrong and names the variables.
pub fn main_checked<C: Args>(
    name: &'static str,
    about: &'static str,
    check: impl FnOnce(&C) -> Result<(), String>,
    run: impl AsyncFnOnce(C, Process) -> anyhow::Result<()>,
) -> ExitCode {
    let parsed = parse::<C>(name, about, std::env::args_os())
        .and_then(|arguments| check(&arguments.config).map(|()| arguments).map_err(ParseError::Sentence));
    start(parsed, name, run)
}

fn start<C: Args>(
    parsed: Result<Arguments<C>, ParseError>,
    name: &'static str,
    run: impl AsyncFnOnce(C, Process) -> anyhow::Result<()>,
) -> ExitCode {
    let Arguments { config, telemetry } = match parsed {
        Ok(arguments) => arguments,
        Err(ParseError::Help(error)) => error.exit(),
        Err(ParseError::Sentence(sentence)) => {
            eprintln!("{name}: {sentence}");
            return ExitCode::from(2);
        }
    };
    // If it fails, there are fewer connections: see `descriptors`.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // A process that lost a task looks alive and answers nothing. A crash loses nothing, and the
        // process's supervisor restarts it.
        report(panic);
        std::process::abort();
    }));
    let ended = telemetry::start(&telemetry).and_then(|metrics| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ended = runtime.block_on(async {
            let shutdown = shutdown::requested()?;
            tokio::spawn(telemetry::upkeep(metrics.clone()));
            run(config, Process { metrics, shutdown }).await
        });
        // A name that does not resolve, or a file on a disk that hangs, must not hold up the end.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", told(&error));
            error.downcast_ref::<ExitError>().map_or(ExitCode::FAILURE, |error| ExitCode::from(error.status))
        }
    }
}

/// How many file descriptors this process may have. That is the soft limit, which [`start`] has raised to the
/// hard one: its usual 1,024 is for programs that use `select`.
pub(crate) fn descriptors() -> u64 {
    rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// A failure with its own exit status, for scripts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct ExitError {
    /// The exit status.
    pub status: u8,
    /// What is wrong.
    pub sentence: String,
    source: Option<Cause>,
}

impl ExitError {
    /// A failure that no other error has caused.
    pub(crate) fn new(status: u8, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into(), source: None }
    }

    /// An error that ends the process with this status.
    pub(crate) fn of(status: u8, error: impl Error + Send + Sync + 'static) -> Self {
        Self { status, sentence: error.to_string(), source: Some(Cause::new(error)) }
    }
}

/// What ended the process: each context, down to the first error that is a whole sentence.
fn told(error: &anyhow::Error) -> String {
    let links = error.chain().take_while(|link| !link.is::<Cause>());
    links.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[derive(Debug)]
enum ParseError {
    /// Help or version was asked for, or an argument is unknown: clap prints that well.
    Help(clap::Error),
    /// What is wrong with the configuration.
    Sentence(String),
}

fn parse<C: Args>(
    name: &'static str,
    about: &'static str,
    arguments: impl Iterator<Item = OsString>,
) -> Result<Arguments<C>, ParseError> {
    let mut faults = Vec::new();
    let mut command = with_secret_files(Arguments::<C>::command().name(name).about(about), &mut faults);
    let matches = command.try_get_matches_from_mut(arguments);
    if let Some(fault) = matches.as_ref().ok().and_then(|matches| fault(&command, matches, faults)) {
        return Err(ParseError::Sentence(fault));
    }
    let parsed = matches.and_then(|matches| Arguments::from_arg_matches(&matches));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue | ErrorKind::MissingRequiredArgument => {
            // Clap has not built the subcommands that it did not parse.
            command.build();
            ParseError::Sentence(sentence(&command, &error))
        }
        _ => ParseError::Help(error),
    })
}

/// An argument whose secret cannot be taken from its file, and why.
type SecretFault = (clap::Id, String);

/// Takes secrets from files: the value of a variable that holds one may be in the file that the variable with
/// `_FILE` names, as orchestrators provide them.
fn with_secret_files(command: clap::Command, faults: &mut Vec<SecretFault>) -> clap::Command {
    let command = command.mut_args(|argument| secret_from_file(argument, faults));
    command.mut_subcommands(|subcommand| subcommand.mut_args(|argument| secret_from_file(argument, faults)))
}

fn secret_from_file(argument: Arg, faults: &mut Vec<SecretFault>) -> Arg {
    // The path of a file is not secret, even if it is hidden, as that of the token file is.
    let is_path = argument.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let variable = argument.get_env().filter(|_| argument.is_hide_env_values_set() && !is_path);
    let Some(variable) = variable.and_then(|variable| variable.to_str()) else { return argument };
    let Some(path) = std::env::var_os(format!("{variable}_FILE")) else { return argument };
    let fault = if std::env::var_os(variable).is_some() {
        format!("{variable} and {variable}_FILE are both set: set only one of them")
    } else {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let value = text.trim_end().to_owned();
                return argument.required(false).default_value(value).hide_default_value(true);
            }
            Err(error) => format!("{variable}_FILE: cannot read {}: {error}", path.display()),
        }
    };
    faults.push((argument.get_id().clone(), fault));
    // The fault is reported instead of the missing value.
    argument.required(false)
}

/// The first fault that concerns the command that is run: other commands may not need the secret, and help
/// does not.
fn fault(command: &clap::Command, matches: &ArgMatches, faults: Vec<SecretFault>) -> Option<String> {
    let run = matches.subcommand_name().and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    let concerns = |(id, _): &SecretFault| run.get_arguments().any(|argument| argument.get_id() == id);
    faults.into_iter().find(concerns).map(|(_, fault)| fault)
}

/// What is wrong with a value, naming the variable it may have come from. Clap's own sentence names only
/// the option, and repeats the value even where it is a secret.
fn sentence(command: &clap::Command, error: &clap::Error) -> String {
    let names: Vec<&str> = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => vec![name],
        Some(ContextValue::Strings(names)) => names.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    // The same argument of another subcommand will do: it has the same name, variable and secrecy.
    let known: Vec<&Arg> = command
        .get_arguments()
        .chain(command.get_subcommands().flat_map(clap::Command::get_arguments))
        .collect();
    let arguments: Vec<&Arg> = names
        .iter()
        .filter_map(|name| known.iter().find(|argument| *name == argument.to_string()).copied())
        .collect();
    let sources: Vec<String> = arguments.iter().map(|argument| source(argument)).collect();
    let sources = if sources.is_empty() { names.join(", ") } else { sources.join(", ") };
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return format!("{sources} is required; see --help");
    }
    let secret = arguments.iter().any(|argument| argument.is_hide_env_values_set());
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) if !secret => format!(" {value:?}"),
        _ => String::new(),
    };
    let reason = match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(reason), _) => reason.to_string().trim_end().to_owned(),
        (None, Some(ContextValue::Strings(valid))) => format!("one of {}", valid.join(", ")),
        (None, _) => "a value is required".into(),
    };
    format!("the value{value} of {sources} is not valid: {reason}")
}

fn source(argument: &Arg) -> String {
    match argument.get_env().and_then(|variable| variable.to_str()) {
        Some(variable) => format!("{variable} ({argument})"),
        None => argument.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_failure_is_told_as_each_context_and_one_sentence() {
        let system = || std::io::Error::other("it is full");
        let failed = Err::<(), _>(system()).context("cannot write a.csv").unwrap_err();
        assert_eq!(told(&failed), "cannot write a.csv: it is full");
        assert_eq!(told(&failed), format!("{failed:#}"));
        assert_eq!(told(&anyhow!("stopped").context("a").context("b")), "b: a: stopped");
        // The sentence of an exit says what its cause says.
        let ended = ExitError::of(16, system());
        assert!(ended.source().and_then(Error::source).is_some_and(<dyn Error>::is::<std::io::Error>));
        assert_eq!(told(&ended.clone().into()), "it is full");
        assert_eq!(told(&anyhow::Error::from(ended).context("cannot begin")), "cannot begin: it is full");
        assert_eq!(told(&ExitError::new(2, "a value is wrong").into()), "a value is wrong");
    }
}
