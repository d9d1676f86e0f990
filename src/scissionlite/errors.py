"""Every exception that ScissionLite raises on purpose, in one hierarchy.

Catch :class:`ScissionLiteError` for all of them. A built-in exception in brackets is a second
base, for code that knows nothing of ScissionLite: ``ValueError`` for bad input, ``TimeoutError``
for a missed deadline. ``tests/test_errors.py`` compares this tree with the classes.

* ScissionLiteError
  * CodecError (ValueError)
    * EntropyCodeError
    * EntropyTablesError
  * ImageError (ValueError)
  * VideoError (ValueError)
  * IsaError (RuntimeError)
  * ModelError (ValueError)
  * CaptureError (RuntimeError)
  * ProfileError (ValueError)
  * PlanError (ValueError)
  * PrepareError (RuntimeError)
  * BundleError (ValueError)
    * SignatureError
  * KeyFileError (ValueError)
  * RuntimeUnavailableError (RuntimeError)
  * WireError (ValueError)
    * TruncatedMessageError
    * TrailingBytesError
    * FrameCountError
    * BadMagicError
    * UnsupportedVersionError
    * BadFieldError
      * MessageKindError
      * DeviceIdError
      * ReservedFieldError
      * EntropyFlagError
      * EncodingError
      * PoolError
      * DimensionError
      * QuantizationFieldError
      * GroupCountError
      * ControlMessageError
      * TensorMismatchError
      * ForeignDeviceIdError
    * LimitExceededError
      * HeaderSizeError
      * DeadlineFieldError
      * TensorCountError
      * RankError
      * DimensionLimitError
      * TensorSizeError
      * ProbeSizeError
      * ControlSizeError
    * PayloadLengthError
    * DigestMismatchError
    * UnauthorizedKeyError
    * MutedConnectionError
  * OffloadError (RuntimeError)
    * EdgeUnavailableError (ConnectionError)
    * DeadlineExceededError (TimeoutError)
      * EdgeBusyError
    * BundleMismatchError
    * AuthorizationError (PermissionError)
    * EdgeExecutionError
"""

import re


class ScissionLiteError(Exception):
    """Base of every exception that ScissionLite raises on purpose."""


class CodecError(ScissionLiteError, ValueError):
    """The codec does not accept a tensor, a spec or a packed payload."""


class EntropyCodeError(CodecError):
    """A payload that is marked as entropy-coded is truncated, altered, or of another length."""


class EntropyTablesError(CodecError):
    """Entropy tables are missing or damaged, or not those that a payload was coded with."""


class ImageError(ScissionLiteError, ValueError):
    """An image file cannot be read, or its values have no plain meaning; the message names it."""


class VideoError(ScissionLiteError, ValueError):
    """A video or camera cannot be opened, or gives no more frames; the message names it."""


class IsaError(ScissionLiteError, RuntimeError):
    """An instruction set was forced that is unknown, or that this CPU does not have."""


class ModelError(ScissionLiteError, ValueError):
    """A model's name means nothing, or the model cannot be loaded."""


class CaptureError(ScissionLiteError, RuntimeError):
    """A model cannot be captured as a graph; the message names the line that prevents it."""


class ProfileError(ScissionLiteError, ValueError):
    """A profile cannot be read, or two profiles are not of the same network."""


class PlanError(ScissionLiteError, ValueError):
    """No plan satisfies the constraints; the message says which constraint excludes what."""


class PrepareError(ScissionLiteError, RuntimeError):
    """The Preprocessor cannot insert, train or split with these arguments."""


class BundleError(ScissionLiteError, ValueError):
    """A bundle's folder is incomplete or altered, or its version is unknown."""


class SignatureError(BundleError):
    """A bundle is not signed by a trusted key, or was altered after it was signed."""


class KeyFileError(ScissionLiteError, ValueError):
    """A file of keys cannot be read or written, or what handles such keys is not installed."""


class RuntimeUnavailableError(ScissionLiteError, RuntimeError):
    """A slice needs a runtime (LibTorch, ONNX Runtime), compiler or processor that is not here."""


class WireError(ScissionLiteError, ValueError):
    """A message breaks the wire format; each way to break it is a subclass."""


class TruncatedMessageError(WireError):
    """A header ends before a field that it announces."""


class TrailingBytesError(WireError):
    """A header has bytes after its last field."""


class FrameCountError(WireError):
    """A message has more or fewer frames than its header announces."""


class BadMagicError(WireError):
    """A frame does not start with the magic bytes: another protocol is spoken at this port."""


class UnsupportedVersionError(WireError):
    """The peer speaks a version of the wire format that this build does not."""


class BadFieldError(WireError):
    """A field holds a value that the format does not allow; each such field is a subclass."""


class MessageKindError(BadFieldError):
    """The kind of a message is unknown, or the receiver does not accept it."""


class DeviceIdError(BadFieldError):
    """A device id is not 16 bytes, or its first byte is zero."""


class ReservedFieldError(BadFieldError):
    """A reserved bit is not zero."""


class EntropyFlagError(BadFieldError):
    """A payload is marked as entropy-coded, but its encoding has no entropy coder."""


class EncodingError(BadFieldError):
    """The encoding of a tensor is unknown."""


class PoolError(BadFieldError):
    """The pool of a tensor is out of range, or its encoding or shape cannot be pooled."""


class DimensionError(BadFieldError):
    """A dimension is zero, or an image is not height x width x 1 or 3 channels."""


class QuantizationFieldError(BadFieldError):
    """A scale or zero point is not one that the tensor's encoding allows."""


class GroupCountError(BadFieldError):
    """The number of scales does not fit the tensor.

    An int8 or int4 tensor has one scale and zero point, or one of each per channel. Any other
    tensor has none.
    """


class ControlMessageError(BadFieldError):
    """A control frame is not a message of the protocol, or not one for the receiver."""


class TensorMismatchError(BadFieldError):
    """A tensor is well-formed, but differs from the description in the bundle's manifest."""


class ForeignDeviceIdError(BadFieldError):
    """A message names a device id that belongs to another peer: another key or address."""


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
    """A payload's length is not the one that shape and encoding require."""


class DigestMismatchError(WireError):
    """Header and payload do not match their digest: the message was altered on its way."""


class UnauthorizedKeyError(WireError):
    """The sender's key is not authorised at the edge, or is no longer."""


class MutedConnectionError(WireError):
    """A message came by a connection that had just sent too many, and was not read."""


class OffloadError(ScissionLiteError, RuntimeError):
    """An inference could not be offloaded."""


class EdgeUnavailableError(OffloadError, ConnectionError):
    """No edge daemon answers at the endpoint."""


class DeadlineExceededError(OffloadError, TimeoutError):
    """No answer came within the request's deadline."""


class EdgeBusyError(DeadlineExceededError):
    """The edge daemon turned the request away, as full, every time until the deadline."""


class BundleMismatchError(OffloadError):
    """The edge daemon serves another bundle than the device's."""


class AuthorizationError(OffloadError, PermissionError):
    """The edge daemon does not take this key, or only one of the two sides has keys."""


class EdgeExecutionError(OffloadError):
    """The edge daemon accepted the request and failed to answer it; the message is the edge's."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without what is for torch's makers; or its class."""
    line = (str(error).strip().splitlines() or [""])[0]
    return without_reports(line) or type(error).__name__


_REPORT = re.compile(
    r"\bplease (file|open|report|submit|consider (filing|opening))\b|"
    r"\b(file|open) an issue\b|\breport (a|this) bug\b|\bsee:? https?://github\.com/pytorch/",
    re.IGNORECASE,
)
"""What asks to report something to torch's makers; a user's model is no fault of torch's."""


def without_reports(text: str) -> str:
    """Leave out of a text what asks the reader to report something to torch's makers."""
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        report = _REPORT.search(sentence)
        if report:
            sentence = sentence[: report.start()].rstrip(" ,;:(")
            if re.match(r"(otherwise|if)\b", sentence, re.IGNORECASE):
                continue
        kept.append(sentence)
    return " ".join(filter(None, kept))
