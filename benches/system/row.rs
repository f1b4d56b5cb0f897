//! The rows of the result: what each measures, and on which dataset.

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use crate::dataset::Dataset;
use crate::scale::Scale;

/// A row. They are run in this order, which needs the fewest changes of the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Row {
    /// The naive design: an upsert for each PUT, on the same HTTP server; PUT by HTTP/1.1, waves
    Naive,
    /// The same HTTP server with a handler that does nothing; PUT by HTTP/1.1, waves
    Floor,
    /// The standalone: PUT by HTTP/1.1, waves
    AlonePut,
    /// The standalone: PUT by HTTP/1.1 over 1 to 2,048 connections, each beside floor, waves
    AloneFrontier,
    /// The standalone: POST of 1,000 events, waves
    AloneBulk,
    /// The standalone: PUT by HTTP/1.1 with an idempotency key each, waves
    AloneKeyed,
    /// The standalone: 1,000 PUT/s by HTTP/1.1, waves: the latency
    AlonePaced,
    /// The standalone: PUT by HTTP/1.1 with a token, waves: what its check costs
    AloneToken,
    /// The standalone: PUT by HTTP/1.1 with a token and over TLS, waves
    AloneTls,
    /// The standalone: the same with a connection, and so a handshake, for each PUT
    AloneHandshake,
    /// The standalone: the large population into a new file by POST in key order; its size, and opening it
    AloneFile,
    /// The standalone: GET of any domain of that file
    AloneGet,
    /// The standalone: POST of look-ups of 1,000 names of that file: names
    AloneLookUp,
    /// The standalone: GET of the totals of that file
    AloneTotals,
    /// The standalone: POST of 1,000 events at 80,000/s over 64 connections, uniform over that file
    AloneUniform,
    /// PUT by HTTP/1.1, waves
    Put,
    /// PUT by HTTP/1.1 at half the rate of put, waves: the latency
    PutHalf,
    /// PUT by HTTP/1.1 over 1 to 2,048 connections, each beside floor, waves
    Frontier,
    /// PUT by HTTP/2 without TLS, waves
    PutH2,
    /// POST of 1,000 events, waves
    Bulk,
    /// Published to the broker, an event per message, waves
    Amqp,
    /// Published to the broker, 500 events per message, waves
    AmqpArrays,
    /// From the 202 to the GET that shows it, beside 20,000 PUT/s, waves
    Fresh,
    /// POST of 1,000 events at 60,000/s, hardly a domain twice, into an empty table
    Growth,
    /// The cost beside a table a tenth as large: POST of 1,000 at 60,000/s, uniform
    SizeSmall,
    /// PUT at 5,000/s beside 20,000 GET/s while nobody reads /metrics: whether memory grows
    Unwatched,
    /// The cost beside the large table: POST of 1,000 at 60,000/s, uniform
    Size,
    /// POST of 1,000 events at 200,000/s, zipf over the large table
    Zipf,
    /// POST of 1,000 events at 100,000/s, uniform over the large table
    Uniform,
    /// POST of 1,000 events as fast as they are taken, zipf over the large table, one worker
    OneWorker,
    /// The same with two workers
    TwoWorkers,
    /// GET of any domain of the large table
    Get,
    /// GET of 20 domains
    GetHot,
    /// GET of any domain at half the rate of get: the latency
    GetHalf,
    /// POST of 1,000 at 70,000/s, uniform over the large table, beside 2,000 GET/s
    Mixed,
    /// From the 202 of the event that decides to the feed's entry, beside 20,000 PUT/s, waves
    ChangeFresh,
    /// A hundred subscribers of server-sent events at 1,000 changes/s
    Subscribers,
    /// GET of pages of 1,000 catch-alls of the large table, of which every second domain is one
    List,
    /// The same at half the rate of list: the latency
    ListHalf,
    /// GET of all catch-alls of that table as a stream: rows
    Export,
    /// POST of look-ups of 1,000 names of that table: names
    LookUp,
    /// GET of the totals of that table
    Totals,
    /// From the 202 to the GET that shows it, beside 50,000 events/s, uniform over that table
    Steady,
    /// The same while catchall-admin reclassifies that table, which changes every second domain
    Reclassify,
    /// The cost beside a table three times as large: POST of 1,000 at 60,000/s, uniform
    SizeLarge,
}

impl Row {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// A description of what it measures.
    pub(crate) fn what(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// The seed of the workload: each row has its own domains.
    pub(crate) fn seed(self) -> u64 {
        self as u64 + 1
    }

    /// The row it is compared with, or whose file it uses.
    fn needs(self) -> Option<Self> {
        match self {
            Self::PutHalf => Some(Self::Put),
            Self::TwoWorkers => Some(Self::OneWorker),
            Self::GetHalf => Some(Self::Get),
            Self::ListHalf => Some(Self::List),
            Self::Reclassify => Some(Self::Steady),
            Self::AloneGet | Self::AloneLookUp | Self::AloneTotals | Self::AloneUniform => {
                Some(Self::AloneFile)
            }
            Self::Size | Self::SizeLarge => Some(Self::SizeSmall),
            _ => None,
        }
    }

    /// The dataset it is measured on.
    pub(crate) fn dataset(self, scale: &Scale) -> Dataset {
        match self {
            // Waves have their own domains, and few of them; the standalone has its own files.
            Self::Naive
            | Self::Floor
            | Self::AlonePut
            | Self::AloneFrontier
            | Self::AloneBulk
            | Self::AloneKeyed
            | Self::AlonePaced
            | Self::AloneToken
            | Self::AloneTls
            | Self::AloneHandshake
            | Self::AloneFile
            | Self::AloneGet
            | Self::AloneLookUp
            | Self::AloneTotals
            | Self::AloneUniform
            | Self::Put
            | Self::PutHalf
            | Self::Frontier
            | Self::PutH2
            | Self::Bulk
            | Self::Amqp
            | Self::AmqpArrays
            | Self::Fresh
            | Self::ChangeFresh
            | Self::Subscribers => Dataset::Any,
            Self::Growth => Dataset::Empty,
            Self::SizeSmall | Self::Unwatched => Dataset::Domains(scale.fewer_domains()),
            Self::Size
            | Self::Zipf
            | Self::Uniform
            | Self::OneWorker
            | Self::TwoWorkers
            | Self::Get
            | Self::GetHot
            | Self::GetHalf
            | Self::Mixed => Dataset::Domains(scale.domains),
            Self::List
            | Self::ListHalf
            | Self::Export
            | Self::LookUp
            | Self::Totals
            | Self::Steady
            | Self::Reclassify => Dataset::Classified(scale.domains),
            Self::SizeLarge => Dataset::Domains(scale.more_domains()),
        }
    }

    /// Whether it measures the system, and not a baseline.
    pub(crate) fn is_ours(self) -> bool {
        !matches!(self, Self::Naive | Self::Floor)
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// The selected rows, or all, together with those they need, in the order of the run.
pub(crate) fn with_those_they_need(asked: &[Row], scale: &Scale) -> Vec<Row> {
    if asked.is_empty() {
        let all = Row::value_variants().iter().copied();
        return all.filter(|row| *row != Row::SizeLarge || scale.with_larger).collect();
    }
    let needed = asked.iter().filter_map(|row| row.needs());
    let mut rows: Vec<Row> = asked.iter().copied().chain(needed).chain([Row::Naive, Row::Floor]).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}
