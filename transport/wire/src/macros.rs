//! Declaration macros: flag words and fixed layout structs.

/// Has a type archived (in snapshots and recordings, which are Zea's own formats) as so many bytes. `$from` gives `None` where
/// they are no value of the type.
macro_rules! archived_as_bytes {
    ($name:ident[$len:expr], $to:expr, $from:expr) => {
        impl rkyv::Archive for $name {
            type Archived = [u8; $len];
            type Resolver = ();

            fn resolve(&self, _: (), out: rkyv::Place<Self::Archived>) {
                let to: fn(&$name) -> [u8; $len] = $to;
                rkyv::Archive::resolve(&to(self), [(); $len], out);
            }
        }

        impl<S: rkyv::rancor::Fallible + ?Sized> rkyv::Serialize<S> for $name {
            fn serialize(&self, _: &mut S) -> Result<(), S::Error> {
                Ok(())
            }
        }

        impl<D> rkyv::Deserialize<$name, D> for [u8; $len]
        where
            D: rkyv::rancor::Fallible + ?Sized,
            D::Error: rkyv::rancor::Source,
        {
            fn deserialize(&self, _: &mut D) -> Result<$name, D::Error> {
                let from: fn([u8; $len]) -> Option<$name> = $from;
                from(*self).ok_or_else(|| rkyv::rancor::Source::new($crate::bytes::NoSuchValue(stringify!($name))))
            }
        }
    };
    // A struct of fixed layout on the wire.
    ($name:ident) => {
        archived_as_bytes!(
            $name[<$name as $crate::bytes::Field>::LEN],
            |value| {
                let mut bytes = Vec::with_capacity(<$name as $crate::bytes::Field>::LEN);
                $crate::bytes::Field::put(value, &mut bytes);
                bytes.try_into().expect("the length is checked where the struct is declared")
            },
            |bytes| $crate::bytes::Field::get(&mut $crate::bytes::Reader::new(&bytes)).ok()
        );
    };
}

/// A newtype over an unsigned integer with named bits. Unknown bits are kept.
macro_rules! flag_word {
    (
        $(#[$meta:meta])*
        $name:ident: $int:ty {
            $( $(#[$fmeta:meta])* $flag:ident = $value:expr ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $int);

        archived_as_bytes!($name[size_of::<$int>()], |flags| flags.0.to_le_bytes(), |bytes| {
            Some($name(<$int>::from_le_bytes(bytes)))
        });

        impl $name {
            $( $(#[$fmeta])* pub const $flag: $name = $name($value); )+
            /// No flag.
            pub const EMPTY: $name = $name(0);
            const NAMES: &'static [(&'static str, $int)] = &[$( (stringify!($flag), $value) ),+];

            /// True if every flag of `other` is set.
            #[must_use]
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// True if no flag is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Both sets of flags.
            #[must_use]
            pub const fn union(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }

            /// The flags of `self` that are not in `other`.
            #[must_use]
            pub const fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }

            /// Sets or clears the flags of `other`.
            pub fn set(&mut self, other: $name, on: bool) {
                *self = if on { self.union(other) } else { self.without(other) };
            }
        }

        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            fn bitor_assign(&mut self, other: $name) {
                self.0 |= other.0;
            }
        }

        impl std::ops::BitAnd for $name {
            type Output = $name;
            fn bitand(self, other: $name) -> $name {
                $name(self.0 & other.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut rest = self.0;
                let mut separator = "";
                for &(name, value) in Self::NAMES {
                    if rest & value == value {
                        write!(f, "{separator}{name}")?;
                        rest &= !value;
                        separator = "|";
                    }
                }
                if rest != 0 || separator.is_empty() {
                    write!(f, "{separator}{rest:#x}")?;
                }
                Ok(())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

/// A struct whose wire layout is its fields in order, big endian, then `pad` bytes that are written
/// as zero and not looked at. `LEN` is checked against the fields when a packet is decoded or encoded.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        $name:ident[$len:literal] {
            $( $(#[$fmeta:meta])* $field:ident: $ty:ty ),+ $(,)?
            $(; pad $pad:literal)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )+
        }

        impl $crate::bytes::Field for $name {
            const LEN: usize = $len;

            fn get(r: &mut $crate::bytes::Reader<'_>) -> Result<Self, $crate::packet::DecodeError> {
                const {
                    let fields = 0 $( + <$ty as $crate::bytes::Field>::LEN )+ $( + $pad )?;
                    assert!(fields == $len, "field sizes do not add up to the struct's size");
                }
                let value = $name { $( $field: $crate::bytes::Field::get(r)?, )+ };
                $( r.skip($pad)?; )?
                Ok(value)
            }

            fn put(&self, out: &mut Vec<u8>) {
                $( $crate::bytes::Field::put(&self.$field, out); )+
                $( out.extend_from_slice(&[0; $pad]); )?
            }
        }
    };
}
