"""``scissionlite run``: the device, from pictures to answers.

``command``         the options: makes a source, a Device and sinks, and waits for the end
``sources``         Picture, Source, ImageFiles: what is answered
``watched_folder``  WatchedFolder: image files as they come (inotify)
``video``           VideoFile, LiveVideo: files, cameras and network streams (OpenCV)
``pipeline``        Pipeline: source -> Device.submit -> sinks, in order, in two threads
``results``         ImageAnswer, Failure: one row each; Tally: all of them together
``sinks``           Sink, Table, JsonDocument, JsonLines: where the rows go
``mqtt``            MqttSink: rows as messages to a broker (paho-mqtt)
``cores``           the cores that it runs on; ``slowness``: tells once that it became slower
``service``         the command line as a unit file of systemd
``live_line``       LiveLine: rate, latency, who answers; one line on the error stream

OpenCV, paho-mqtt and inotify-simple are extras, imported where an option asks for them.
"""

from __future__ import annotations

from scissionlite.cli.run.command import run

__all__ = ["run"]
