// LDK and its sockets as one file (`npm run bundle`): to load its eight hundred modules one by one takes a process most
// of its start.
export * from "lightningdevkit";
export { NodeLDKNet } from "lightningdevkit-node-net";
