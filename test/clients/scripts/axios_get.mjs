import axios from 'axios';

console.log((await axios.get(process.argv[2])).data);
