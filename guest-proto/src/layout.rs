//! Self-describing ABI definitions.
//!
//! `abi_struct!` and `abi_enum!` define a type and, beside it, a constant that describes it.
//! The C header and the tables in `docs/` are printed from those constants, so that neither can
//! say anything that the Rust side does not.

/// One field of an ABI structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in Rust and in C.
    pub name: &'static str,
    /// Rust type, as written.
    pub ty: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// First paragraph of its documentation.
    pub doc: &'static str,
}

/// An ABI structure.
#[derive(Clone, Copy, Debug)]
pub struct Struct {
    /// Name in Rust.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Its documentation.
    pub doc: &'static str,
    /// Its fields in order.
    pub fields: &'static [Field],
}

/// One value of an ABI enumeration or flag set.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Name in Rust.
    pub name: &'static str,
    /// Numeric value.
    pub value: i64,
    /// Its documentation.
    pub doc: &'static str,
}

/// An ABI enumeration.
#[derive(Clone, Copy, Debug)]
pub struct Enum {
    /// Name in Rust.
    pub name: &'static str,
    /// Its documentation.
    pub doc: &'static str,
    /// Its values in order.
    pub variants: &'static [Variant],
}

/// Defines a `repr(C)` structure of a fixed size without padding, and its `LAYOUT`.
macro_rules! abi_struct {
    (
        $(#[doc = $sdoc:literal])*
        pub struct $name:ident : $size:literal {
            $( $(#[doc = $fdoc:literal])* pub $field:ident : $ty:tt ),* $(,)?
        }
    ) => {
        $(#[doc = $sdoc])*
        #[repr(C)]
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name {
            $( $(#[doc = $fdoc])* pub $field: $ty, )*
        }

        const _: () = assert!(core::mem::size_of::<$name>() == $size);

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        impl $name {
            /// Field names, offsets and sizes, for the C header and the documentation.
            pub const LAYOUT: $crate::layout::Struct = $crate::layout::Struct {
                name: stringify!($name),
                size: $size,
                doc: concat!($($sdoc, "\n"),*),
                fields: &[ $( $crate::layout::Field {
                    name: stringify!($field),
                    ty: stringify!($ty),
                    offset: core::mem::offset_of!($name, $field),
                    size: core::mem::size_of::<$ty>(),
                    doc: concat!($($fdoc, "\n"),*),
                } ),* ],
            };
        }
    };
}

/// Defines a closed enumeration with a checked conversion from its integer, and its `LAYOUT`.
macro_rules! abi_enum {
    (
        $(#[doc = $edoc:literal])*
        pub enum $name:ident : $repr:ident {
            $( $(#[doc = $vdoc:literal])* $variant:ident = $value:literal ),* $(,)?
        }
    ) => {
        $(#[doc = $edoc])*
        #[repr($repr)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $vdoc])* $variant = $value, )*
        }

        impl $name {
            /// Names and values, for the C header and the documentation.
            pub const LAYOUT: $crate::layout::Enum = $crate::layout::Enum {
                name: stringify!($name),
                doc: concat!($($edoc, "\n"),*),
                variants: &[ $( $crate::layout::Variant {
                    name: stringify!($variant),
                    value: $value,
                    doc: concat!($($vdoc, "\n"),*),
                } ),* ],
            };

            /// The value of this name, or `None` if the number has none.
            pub const fn from_raw(raw: $repr) -> Option<Self> {
                match raw {
                    $( $value => Some(Self::$variant), )*
                    _ => None,
                }
            }

            /// Its number.
            pub const fn raw(self) -> $repr {
                self as $repr
            }

            /// Its name as written here.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$variant => stringify!($variant), )*
                }
            }
        }
    };
}

/// Defines a set of flags, and its `LAYOUT`.
macro_rules! abi_flags {
    (
        $(#[doc = $sdoc:literal])*
        pub struct $name:ident : $repr:ident {
            $( $(#[doc = $fdoc:literal])* $flag:ident = $value:expr ),* $(,)?
        }
    ) => {
        bitflags::bitflags! {
            $(#[doc = $sdoc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name: $repr {
                $( $(#[doc = $fdoc])* const $flag = $value; )*
            }
        }

        impl $name {
            /// Names and values, for the C header and the documentation.
            pub const LAYOUT: $crate::layout::Enum = $crate::layout::Enum {
                name: stringify!($name),
                doc: concat!($($sdoc, "\n"),*),
                variants: &[ $( $crate::layout::Variant {
                    name: stringify!($flag),
                    value: $value,
                    doc: concat!($($fdoc, "\n"),*),
                } ),* ],
            };
        }
    };
}

/// Defines integer constants of one kind (limits, tags), and a table of them.
macro_rules! abi_consts {
    (
        $(#[doc = $gdoc:literal])*
        pub mod $module:ident : $ty:ident {
            $( $(#[doc = $cdoc:literal])* $name:ident = $value:expr ),* $(,)?
        }
    ) => {
        $(#[doc = $gdoc])*
        pub mod $module {
            $( $(#[doc = $cdoc])* pub const $name: $ty = $value; )*

            /// Names and values, for the C header and the documentation.
            pub const LAYOUT: $crate::layout::Enum = $crate::layout::Enum {
                name: stringify!($module),
                doc: concat!($($gdoc, "\n"),*),
                variants: &[ $( $crate::layout::Variant {
                    name: stringify!($name),
                    value: $name as i64,
                    doc: concat!($($cdoc, "\n"),*),
                } ),* ],
            };
        }
    };
}

pub(crate) use {abi_consts, abi_enum, abi_flags, abi_struct};
