"""Every exception that ScissionLite raises on purpose, in one hierarchy.

Catch :class:`ScissionLiteError` for all of them. Where a built-in exception says the same
(``ValueError`` for bad input, ``TimeoutError`` for a missed deadline), the class derives from it
as well, so code that knows nothing of ScissionLite still handles it.
"""


class ScissionLiteError(Exception):
    """Base of every exception raised by ScissionLite."""


class CodecError(ScissionLiteError, ValueError):
    """A tensor, spec or packed payload that the Transfer Layer's codec cannot take."""


class IsaError(ScissionLiteError, RuntimeError):
    """An instruction set was forced that is unknown or that this CPU does not have."""


class ModelError(ScissionLiteError, ValueError):
    """A model name that cannot be resolved, or a model that cannot be loaded."""


class CaptureError(ScissionLiteError, RuntimeError):
    """A model that cannot be captured as a graph; the message names the line that prevents it."""


class ProfileError(ScissionLiteError, ValueError):
    """A profile file that cannot be read, or two profiles that are not of the same network."""


class PlanError(ScissionLiteError, ValueError):
    """No plan satisfies the constraints; the message says which constraint excludes what."""


class PrepareError(ScissionLiteError, RuntimeError):
    """The Preprocessor cannot insert, train or split as asked."""


class BundleError(ScissionLiteError, ValueError):
    """A bundle folder that is incomplete, altered, or of a version that is not understood."""


class RuntimeUnavailableError(ScissionLiteError, RuntimeError):
    """A slice needs a runtime (LibTorch, ONNX Runtime), compiler or processor that is not here."""


class WireError(ScissionLiteError, ValueError):
    """A message that breaks the wire format; each way to break it is a subclass."""


class TruncatedMessageError(WireError):
    """A header ends before a field that it announces."""


class TrailingBytesError(WireError):
    """A header goes on after its last field."""


class FrameCountError(WireError):
    """A message has more or fewer frames than its header announces."""


class BadMagicError(WireError):
    """A frame does not start with the magic bytes: something else talks to this port."""


class UnsupportedVersionError(WireError):
    """The peer speaks a version of the wire format that this build does not."""


class BadFieldError(WireError):
    """A field holds a value that the format does not allow; each such field is a subclass."""


class MessageKindError(BadFieldError):
    """The message is of an unknown kind, or of one that the receiver does not take."""


class DeviceIdError(BadFieldError):
    """The device id is one that no device may have."""


class ReservedFieldError(BadFieldError):
    """A reserved bit is not zero."""


class EntropyFlagError(BadFieldError):
    """A payload is marked as entropy-coded whose encoding has no entropy coder."""


class EncodingError(BadFieldError):
    """The encoding of a tensor is unknown."""


class PoolError(BadFieldError):
    """The pooling of a tensor is out of range, or its encoding or shape cannot be pooled."""


class DimensionError(BadFieldError):
    """A dimension is zero, or a JPEG tensor is not height x width x channels."""


class QuantizationFieldError(BadFieldError):
    """A scale or zero point is not one that the tensor's encoding allows."""


class GroupCountError(BadFieldError):
    """There are scales for neither the tensor nor each channel, or for what has none."""


class ControlMessageError(BadFieldError):
    """A control frame is not a message of the protocol, or not one for the receiver."""


class TensorMismatchError(BadFieldError):
    """A tensor is well-formed, but not the one that the bundle's manifest says."""


class LimitExceededError(WireError):
    """A count, dimension or size is over the format's cap; each cap is a subclass."""


class HeaderSizeError(LimitExceededError):
    """A header is longer than the format allows."""


class DeadlineFieldError(LimitExceededError):
    """The remaining deadline is longer than the format allows."""


class TensorCountError(LimitExceededError):
    """A message has no tensor, or more than the format allows."""


class RankError(LimitExceededError):
    """A tensor has no dimension, or more than the format allows."""


class DimensionLimitError(LimitExceededError):
    """A dimension is larger than the format allows."""


class TensorSizeError(LimitExceededError):
    """The tensors of a message, packed or unpacked, are larger than the format allows."""


class ProbeSizeError(LimitExceededError):
    """A probe's payload is larger than the protocol allows."""


class ControlSizeError(LimitExceededError):
    """A control frame is longer than the protocol allows."""


class PayloadLengthError(WireError):
    """The payload is not exactly as long as shape and encoding say."""


class DigestMismatchError(WireError):
    """Header and payload do not match their digest: the message was altered on its way."""


class OffloadError(ScissionLiteError, RuntimeError):
    """An inference could not be offloaded."""


class EdgeUnavailableError(OffloadError, ConnectionError):
    """No edge daemon answers at the address."""


class DeadlineExceededError(OffloadError, TimeoutError):
    """No answer came within the request's deadline."""


class BundleMismatchError(OffloadError):
    """The edge daemon serves another bundle than the device was started with."""


class EdgeExecutionError(OffloadError):
    """The edge daemon took the request and failed to answer it; the message is the edge's."""
