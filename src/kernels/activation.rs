//! Activations and their cotangents, element by element.
//!
//! `Silu` has none: ONNX Runtime makes one pass of its body, at the same speed.

use super::operator::Known;
use super::rows::Named;
use super::vector::{Map, erf, exp, sigmoid};

/// Declares an elementwise function under the name of its operator.
macro_rules! function {
    ($(#[$doc:meta])* $name:ident, $shape:ident, [$($x:ident),*] => $y:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default)]
        pub struct $name;
        impl Map<{ [$(stringify!($x)),*].len() }> for $name {
            #[inline(always)]
            fn at(self, [$($x),*]: [f32; [$(stringify!($x)),*].len()]) -> f32 {
                $y
            }
        }
        impl Named<{ [$(stringify!($x)),*].len() }> for $name {
            const NAME: &'static str = stringify!($name);
            const SHAPE: Known = Known::$shape;
        }
    };
}

/// s (1 + x (1 - s)),  s = sigmoid(x)
#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

function!(SiluGrad, Common, [x, dy] => dy * silu_slope(x));
function!(Swiglu, Common, [g, u] => g * sigmoid(g) * u);
function!(
    /// The cotangent of g.
    SwigluGrad, First, [dy, g, u] => dy * u * silu_slope(g)
);
function!(
    /// The cotangent of u.
    SwigluGradU, First, [dy, g] => dy * (g * sigmoid(g))
);

/// (1 + erf(x / sqrt 2)) / 2
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// 1 / sqrt(2 pi)
const DENSITY: f32 = 0.398_942_3;

function!(Gelu, First, [x] => x * normal(x));
function!(GeluGrad, Common, [x, dy] => dy * (normal(x) + x * (DENSITY * exp(-0.5 * (x * x)))));

/// (1 + tanh(k (x + a x^3))) / 2 as a sigmoid, which loses nothing where tanh is near -1;  k = sqrt(2 / pi), a = 0.044715
#[inline(always)]
fn smooth_step(x: f32) -> f32 {
    sigmoid(2.0 * (0.797_884_6 * (x + 0.044_715 * (x * (x * x)))))
}

function!(GeluTanh, First, [x] => x * smooth_step(x));
function!(GeluTanhGrad, Common, [x, dy] => {
    // With h = tanh: (1 - h^2) / 4 = s (1 - s).
    let s = smooth_step(x);
    dy * (s + x * (4.0 * (s * (1.0 - s))) * (DENSITY * (1.0 + 0.134_145 * (x * x))))
});
