// Sound at 16 kHz, mono, from the microphone or a file. Both give their recent samples.

export const RATE = 16000;
const KEPT = 32 * RATE; // samples of the microphone

export class Microphone {
  /** Asks for the microphone and listens. Throws an error that says what the user can do. */
  static async open() {
    if (!navigator.mediaDevices)
      throw new Error("The browser gives the microphone only to pages on localhost or https; open this page there.");
    let stream;
    try {
      // what the browser would improve for people is another sound than the student's training data
      const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
      stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      if (error.name === "NotAllowedError")
        throw new Error("The microphone is not allowed. Allow it beside the page's address, then press it again.");
      if (error.name === "NotFoundError") throw new Error("There is no microphone.");
      throw new Error(`The microphone fails: ${error.message}`);
    }
    const context = new AudioContext({ sampleRate: RATE });
    try {
      await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
      const recorder = new AudioWorkletNode(context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
      context.createMediaStreamSource(stream).connect(recorder);
      recorder.connect(context.destination); // silent; a node that leads nowhere may not run
      await context.resume();
      return new Microphone(stream, context, recorder.port);
    } catch (error) {
      for (const track of stream.getTracks()) track.stop();
      const advice = "Choose an audio file, or another browser.";
      throw new Error(`This browser cannot record at 16 kHz (${error.message}). ${advice}`);
    }
  }

  constructor(stream, context, port) {
    Object.assign(this, { stream, context });
    this.ring = new Float32Array(KEPT);
    this.heard = 0;
    port.onmessage = ({ data }) => {
      for (const sample of data) this.ring[this.heard++ % KEPT] = sample;
    };
  }

  /**
   * Up to `count` samples, {samples, start, room}: where they start, and how many there will be.
   * They end at a multiple of `step`, so that frames stay where they were.
   */
  recent(count, step) {
    const end = this.heard - (this.heard % step);
    const start = Math.max(0, end - count);
    const samples = new Float32Array(end - start);
    for (let index = 0; index < samples.length; index++) samples[index] = this.ring[(start + index) % KEPT];
    return { samples, start, room: count };
  }

  stop() {
    for (const track of this.stream.getTracks()) track.stop();
    this.context.close();
  }
}

export class Recording {
  /** A file's bytes; `player` is the audio element that plays it. */
  static async open(name, bytes, player) {
    const url = URL.createObjectURL(new Blob([bytes]));
    let decoded;
    try {
      decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes); // which resamples
    } catch {
      throw new Error(`${name} is not audio that this browser can decode`);
    }
    const samples = new Float32Array(decoded.length);
    for (let channel = 0; channel < decoded.numberOfChannels; channel++)
      decoded.getChannelData(channel).forEach((sample, index) => (samples[index] += sample / decoded.numberOfChannels));
    player.src = url;
    return new Recording(samples, player, url);
  }

  constructor(samples, player, url) {
    Object.assign(this, { samples, player, url });
  }

  /** As `Microphone.recent`: what was played last, but at first the beginning. */
  recent(count, step) {
    const played = Math.floor((this.player.currentTime * RATE) / step) * step;
    const end = Math.min(this.samples.length, Math.max(count, played));
    const start = Math.max(0, end - count);
    return { samples: this.samples.slice(start, end), start, room: end - start };
  }

  stop() {
    this.player.removeAttribute("src");
    URL.revokeObjectURL(this.url);
  }
}
