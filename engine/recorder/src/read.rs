//! Finding the segments of a recording.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::writer::{SUFFIX, list};

/// Why there is nothing to read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file or folder cannot be read.
    #[error("cannot read {path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder without segments.
    #[error("{0} has no recording: a recording is a folder with files that end in {SUFFIX}, or one of them")]
    Empty(PathBuf),
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// The segments of a recording, oldest first.
#[derive(Debug)]
pub struct Recorded(Vec<Source>);

impl Recorded {
    /// One segment by its file, or all of a resource by their folder.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(path: &Path) -> Result<Recorded, ReadError> {
        let failed = |error| ReadError::Io { path: path.to_owned(), error };
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            return Ok(Recorded(vec![Source::File(path.to_owned())]));
        }
        let files = list(path).map_err(failed)?;
        if files.is_empty() {
            return Err(ReadError::Empty(path.to_owned()));
        }
        let file = |(number, _)| Source::File(path.join(format!("{number:012}{SUFFIX}")));
        Ok(Recorded(files.into_iter().map(file).collect()))
    }

    /// Segments that are in memory.
    pub fn of(segments: Vec<Vec<u8>>) -> Recorded {
        Recorded(segments.into_iter().map(Source::Bytes).collect())
    }

    /// All segments, with their names.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Result<(String, Cow<'_, [u8]>), ReadError>> {
        self.0.iter().enumerate().map(|(nr, source)| match source {
            Source::Bytes(bytes) => Ok((nr.to_string(), Cow::Borrowed(&bytes[..]))),
            Source::File(path) => match fs::read(path) {
                Ok(bytes) => Ok((path.display().to_string(), Cow::Owned(bytes))),
                Err(error) => Err(ReadError::Io { path: path.clone(), error }),
            },
        })
    }
}
